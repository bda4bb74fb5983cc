import random

import pytest
import torch
from jaxtyping import TypeCheckError

from t3d.sdar.attention import (
    TrainingTokens,
    block_causal_mask,
    block_index,
    block_start,
    training_mask,
)


def test_block_index_counts_from_the_origin_also_to_its_left() -> None:
    positions = torch.arange(10)
    assert block_index(positions, 4).tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert block_index(positions, 4, 5).tolist() == [-2, -1, -1, -1, -1, 0, 0, 0, 0, 1]


def test_block_index_takes_a_size_and_an_origin_per_row() -> None:
    positions = torch.arange(6).expand(2, -1)
    blocks = block_index(positions, torch.tensor([[2], [4]]), torch.tensor([[0], [1]]))
    assert blocks.tolist() == [[0, 0, 1, 1, 2, 2], [-1, 0, 0, 0, 0, 1]]


@pytest.mark.parametrize(
    ("position", "size", "origin", "expected"),
    [(0, 4, 0, 0), (7, 4, 0, 4), (8, 4, 0, 8), (7, 4, 5, 5), (3, 4, 5, 1)],
)
def test_start_of_the_block_of_a_position(position: int, size: int, origin: int, expected: int) -> None:
    assert block_start(position, size, origin) == expected


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
def test_block_causal_mask_equals_the_loop(size: int) -> None:
    mask = block_causal_mask(torch.arange(11), torch.arange(11), size)
    for query in range(11):
        for key in range(11):
            same_block = query // size == key // size
            assert mask[query, key] == (same_block or key < query)


def test_block_causal_mask_of_cached_decoding_hides_stale_keys_of_later_blocks() -> None:
    queries = torch.tensor([[4, 5, 6, 7], [0, 1, 2, 3]])
    mask = block_causal_mask(queries, torch.arange(12).expand(2, -1), 4)
    assert mask.shape == (2, 4, 12)
    assert mask[0].tolist() == [[True] * 8 + [False] * 4] * 4
    assert mask[1].tolist() == [[True] * 4 + [False] * 8] * 4


def layout(prompt: int, response: int, size: int, response_aligned: bool) -> list[tuple[int, bool]]:
    """(position, noisy) of [prompt][clean response][noisy response]; the response ends with a block."""
    first_noisy = prompt if response_aligned else prompt // size * size
    clean = [(position, False) for position in range(prompt + response)]
    return clean + [(position, True) for position in range(first_noisy, prompt + response)]


def sees(query: tuple[int, bool], key: tuple[int, bool], size: int, origin: int) -> bool:
    (query_position, query_noisy), (key_position, key_noisy) = query, key
    query_block, key_block = (query_position - origin) // size, (key_position - origin) // size
    if query_noisy and key_noisy:
        return query_block == key_block
    if query_noisy:
        return key_block < query_block
    return not key_noisy and key_block <= query_block


@pytest.mark.parametrize("response_aligned", [False, True])
@pytest.mark.parametrize("size", [1, 3, 4])
@pytest.mark.parametrize("seed", range(3))
def test_training_mask_equals_the_loop_for_several_documents_in_a_row(
    seed: int, size: int, response_aligned: bool
) -> None:
    chooser = random.Random(seed)
    row: list[tuple[int, tuple[int, bool], int]] = []
    for document in range(chooser.randint(1, 3)):
        prompt, num_blocks = chooser.randint(0, 6), chooser.randint(1, 3)
        response = num_blocks * size - (0 if response_aligned else prompt % size)
        origin = prompt if response_aligned else 0
        row += [(document, token, origin) for token in layout(prompt, response, size, response_aligned)]
    tokens = TrainingTokens(
        block=torch.tensor([(position - origin) // size for _, (position, _), origin in row]),
        noisy=torch.tensor([noisy for _, (_, noisy), _ in row]),
        document=torch.tensor([document for document, _, _ in row]),
    )
    mask = training_mask(tokens, tokens)
    for i, (query_document, query, origin) in enumerate(row):
        for j, (key_document, key, _) in enumerate(row):
            assert mask[i, j] == (query_document == key_document and sees(query, key, size, origin))
    assert mask.diagonal().all(), "a softmax over no key"
    assert torch.equal(training_mask(tokens.at(slice(1, 4)), tokens.at(slice(2, None))), mask[1:4, 2:])


def test_training_mask_written_out() -> None:
    # Block size 2, prompt [p q r], response [s]: q|r share no block; the first noisy block is [r s].
    blocks = torch.tensor([0, 0, 1, 1, 1, 1])
    noisy = torch.tensor([False, False, False, False, True, True])
    tokens = TrainingTokens(blocks, noisy, torch.zeros(6, dtype=torch.long))
    assert training_mask(tokens, tokens).int().tolist() == [
        [1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 1],
        [1, 1, 0, 0, 1, 1],
    ]


def test_annotations_are_checked_under_pytest() -> None:
    with pytest.raises(TypeCheckError, match="positions"):
        block_index(torch.ones(3), 4)

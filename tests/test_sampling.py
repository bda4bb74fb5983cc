import math

import numpy as np
import pytest
import torch

from t3d.sampling import best_tokens, draw_tokens, entropy, response_uniforms, token_probabilities

LARGEST_UNIFORM = float(np.nextafter(np.float32(1), np.float32(0)))
# Probabilities .4 .3 .2 .1; the mask token, id 2 of 0..4, is left out.
SCORES = torch.tensor([[math.log(0.3), math.log(0.1), -math.inf, math.log(0.4), math.log(0.2)]])


def filtered(temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> list[float]:
    return token_probabilities(SCORES, temperature, top_k, top_p)[0].tolist()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.3, 0.1, 0, 0.4, 0.2]),
        ({"temperature": 0.0}, [0.3, 0.1, 0, 0.4, 0.2]),
        # At temperature 1/2 probabilities are squared: .09 .01 .16 .04, sum .3.
        ({"temperature": 0.5}, [0.3, 1 / 30, 0, 16 / 30, 4 / 30]),
        ({"top_k": 2}, [3 / 7, 0, 0, 4 / 7, 0]),
        ({"top_k": 1}, [0, 0, 0, 1, 0]),
        ({"top_k": 100}, [0.3, 0.1, 0, 0.4, 0.2]),
        # .4 + .3 = .7 reaches .65 with its second token; .75 needs the third.
        ({"top_p": 0.65}, [3 / 7, 0, 0, 4 / 7, 0]),
        ({"top_p": 0.75}, [3 / 9, 0, 0, 4 / 9, 2 / 9]),
        ({"top_p": 1e-6}, [0, 0, 0, 1, 0]),
        # Top-k first: 4/9 3/9 2/9; then .7 is reached by the first two.
        ({"top_k": 3, "top_p": 0.7}, [3 / 7, 0, 0, 4 / 7, 0]),
        # Temperature before top-p: 16/30 alone reaches .5, where .4 would not.
        ({"temperature": 0.5, "top_p": 0.5}, [0, 0, 0, 1, 0]),
    ],
)
def test_filtered_distributions_worked_by_hand(settings: dict, expected: list[float]) -> None:
    assert filtered(**settings) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("temperature", [1e-6, 1e-7, 1e-30, 1e-45, 1e-300, 5e-324])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4, 1e30])
def test_the_smallest_temperatures_give_the_best_token_everything(temperature: float, scale: float) -> None:
    probabilities = token_probabilities(SCORES * scale + 40, temperature, 0, 1.0)
    assert probabilities.tolist() == [[0, 0, 0, 1, 0]]
    assert draw_tokens(probabilities, torch.tensor([LARGEST_UNIFORM])).tolist() == [3]


def test_at_the_smallest_temperatures_equally_good_tokens_share() -> None:
    assert token_probabilities(torch.tensor([[90.0, 90.0, 89.0]]), 1e-30, 0, 1.0).tolist() == [[0.5, 0.5, 0]]


def test_tempered_scores_agree_where_their_computation_changes() -> None:
    scores = torch.tensor([[0.0, -1e-6, -3e-6]])
    above, below = (token_probabilities(scores, temperature, 0, 1.0) for temperature in (1e-6, 0.9999999e-6))
    assert torch.allclose(above, below, atol=1e-5)


def test_a_uniform_picks_by_inverse_distribution_function() -> None:
    probabilities = torch.tensor([[0.25, 0.0, 0.5, 0.25]]).expand(5, -1)
    assert draw_tokens(probabilities, torch.tensor([0.0, 0.2, 0.3, 0.7, 0.8])).tolist() == [0, 0, 2, 2, 3]


@pytest.mark.parametrize("vocab", [5, 1000, 151_936])
@pytest.mark.parametrize("uniform", [0.0, LARGEST_UNIFORM])
def test_tokens_of_probability_zero_are_never_drawn(vocab: int, uniform: float) -> None:
    weights = torch.rand(4, vocab, generator=torch.Generator().manual_seed(vocab))
    weights[:, : vocab // 3] = 0
    weights[:, -(vocab // 3) :] = 0
    probabilities = weights / weights.sum(-1, keepdim=True)
    tokens = draw_tokens(probabilities, torch.full((4,), uniform))
    assert (probabilities.gather(-1, tokens[:, None]) > 0).all()


def test_frequencies_of_draws_match_the_probabilities() -> None:
    num_draws = 20_000
    uniforms = response_uniforms(3, 0, num_draws // 8, 1, 8).reshape(-1)
    probabilities = token_probabilities(SCORES, 0.7, 0, 1.0)
    tokens = draw_tokens(probabilities.expand(num_draws, -1), torch.from_numpy(uniforms))
    counts = torch.bincount(tokens, minlength=5).double()
    expected = probabilities[0].double() * num_draws
    assert counts[2] == 0
    possible = expected > 0
    chi_square = float(((counts - expected)[possible] ** 2 / expected[possible]).sum())
    assert chi_square < 16.27, "p < 0.001 with 3 degrees of freedom"


def test_streams_are_uniform_repeatable_and_their_own() -> None:
    first = response_uniforms(7, 5, 100, 4, 8)
    assert first.shape == (100, 4, 8)
    assert first.dtype == np.float32
    assert first.min() >= 0
    assert first.max() < 1
    assert abs(first.mean() - 0.5) < 4 / math.sqrt(12 * first.size)
    assert np.array_equal(first, response_uniforms(7, 5, 100, 4, 8))
    for other in (response_uniforms(7, 6, 100, 4, 8), response_uniforms(8, 5, 100, 4, 8)):
        assert not np.isin(other, first).all()
        assert abs(np.corrcoef(first.reshape(-1), other.reshape(-1))[0, 1]) < 0.1


def test_a_longer_response_extends_the_same_stream() -> None:
    assert np.array_equal(response_uniforms(1, 2, 3, 2, 5), response_uniforms(1, 2, 9, 2, 5)[:3])


def test_entropy_in_nats() -> None:
    probabilities = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.25, 0.25, 0.5]])
    assert entropy(probabilities).tolist() == pytest.approx([math.log(2), 0, 1.5 * math.log(2)])


@pytest.mark.parametrize("vocab", [1, 347, 512, 1000, 151_936])
def test_the_best_token_is_the_first_of_the_largest(vocab: int) -> None:
    torch.manual_seed(0)
    scores = torch.randn(6, vocab).round(decimals=1)  # many equals
    scores[0, vocab // 2] = math.nan
    scores[1] = -math.inf
    scores[2, vocab // 3] = math.inf
    best, tokens = best_tokens(scores)
    assert torch.equal(tokens, torch.tensor(scores.numpy().argmax(-1)))  # numpy too takes a NaN for the largest
    assert torch.equal(best.nan_to_num(9), scores.gather(-1, tokens[:, None])[:, 0].nan_to_num(9))


def test_no_rows_have_no_best_tokens() -> None:
    best, tokens = best_tokens(torch.empty(0, 512))
    assert best.shape == tokens.shape == (0,)


@pytest.mark.parametrize("vocab", [512, 151_936 // 64, 7, 1])
def test_two_passes_draw_what_one_running_sum_draws(vocab: int) -> None:
    generator = torch.Generator().manual_seed(vocab)
    probabilities = (4 * torch.randn(400, vocab, generator=generator)).softmax(-1)
    probabilities[:, ::3] *= 0 if vocab > 1 else 1
    uniforms = torch.rand(400, generator=generator)
    running = probabilities.double().cumsum(-1)
    targets = uniforms.double()[:, None] * running[:, -1:]
    expected = torch.searchsorted(running, targets, right=True)[:, 0]
    found = draw_tokens(probabilities, uniforms)
    # Another order of adding may move a boundary by its rounding, and no further.
    edges = (running - targets).abs().amin(-1)
    assert ((found == expected) | (edges < 1e-6)).all()
    assert (found == expected).float().mean() > 0.99
    assert (probabilities.gather(-1, found[:, None]) > 0).all()


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_the_ends_of_a_large_vocabulary_draw_no_token_of_probability_0(uniform: float) -> None:
    probabilities = torch.zeros(3, 1024)
    probabilities[0, 300] = probabilities[1, 1000] = 1
    probabilities[2, 255:257] = 0.5
    tokens = draw_tokens(probabilities, torch.full((3,), uniform))
    assert tokens.tolist() == [300, 1000, 255 if uniform == 0 else 256]

import math

import pytest
import torch

from t3d.decoding import DecodingConfig, decode
from t3d.decoding.draws import JUDGED_BYTES, RowTiles, join, judge, row_tiles
from t3d.decoding.plain import decode_plain
from t3d.trajectory import Trajectory

MASK = 2
# Probabilities .4 .3 .2 .1 once the mask token, whose logit is the greatest, is left out.
LOGITS = torch.tensor([[math.log(0.3), math.log(0.1), 9.0, math.log(0.4), math.log(0.2)]])


def draw(ranked_by: str | None = "confidence", uniform: float | None = None, **settings):
    config = DecodingConfig(MASK, **settings)
    return judge(LOGITS.clone(), None if uniform is None else torch.tensor([uniform]), ranked_by, config)


def test_the_greedy_draw_is_the_best_token_but_the_mask() -> None:
    drawn = draw()
    assert drawn.tokens.tolist() == [3]
    assert drawn.score.tolist() == pytest.approx([0.4])
    assert draw(top_k=2).score.tolist() == pytest.approx([4 / 7]), "its confidence is taken under top-k and top-p"
    unranked = draw(None)
    assert unranked.score is unranked.best, "where nothing is ranked nothing is computed"


def test_scaled_confidence_is_the_probability_it_was_drawn_with_and_raw_the_models_own() -> None:
    # At temperature 1/2 probabilities are squared: .09 .01 .16 .04, sum .3.
    settings = {"temperature": 0.5, "uniform": 0.1}
    assert draw(**settings).tokens.tolist() == [0]
    assert draw(**settings).score.tolist() == pytest.approx([0.3])
    assert draw(temperature=0.5, uniform=0.99).score.tolist() == pytest.approx([4 / 30])
    assert draw(temperature=0.5, uniform=0.99, confidence="raw").score.tolist() == pytest.approx([0.2])
    assert draw(top_k=1, confidence="raw").score.tolist() == pytest.approx([0.4]), "unfiltered"


def test_entropies_are_those_of_the_same_distribution() -> None:
    def entropy(*values: float) -> float:
        return -sum(value * math.log(value) for value in values)

    assert draw("entropy").score.tolist() == pytest.approx([entropy(0.4, 0.3, 0.2, 0.1)])
    assert draw("entropy", 0.5, top_k=2, temperature=1.0).score.tolist() == pytest.approx([entropy(4 / 7, 3 / 7)])
    raw = draw("entropy", 0.5, top_k=2, temperature=0.1, confidence="raw")
    assert raw.score.tolist() == pytest.approx([entropy(0.4, 0.3, 0.2, 0.1)])


def test_half_precision_logits_are_judged_in_single_precision() -> None:
    drawn = judge(LOGITS.bfloat16(), None, "confidence", DecodingConfig(MASK, record=("logprob",)))
    assert drawn.score.dtype == torch.float32
    assert drawn.logprobs is not None
    assert drawn.logprobs.dtype == torch.float32


@pytest.mark.parametrize(
    ("logits", "failed"),
    [
        ([1.0, math.nan, 0.0, 2.0, 3.0], True),
        ([1.0, math.inf, 0.0, 2.0, 3.0], True),
        ([-math.inf] * 5, True),
        ([-math.inf, -math.inf, math.nan, -math.inf, 0.0], False),
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_that_are_no_distribution_are_told_from_their_neighbours(logits, failed: bool, temperature: float) -> None:
    rows = torch.cat([LOGITS, torch.tensor([logits]), LOGITS])
    uniforms = torch.full((3,), 0.99) if temperature else None
    drawn = judge(rows, uniforms, "confidence", DecodingConfig(MASK, temperature=temperature, top_p=0.9))
    assert drawn.failed.tolist() == [False, failed, False]
    assert (drawn.tokens < 5).all()
    assert torch.equal(drawn.tokens[0], drawn.tokens[2])


def test_tiles_of_rows_join_to_the_whole() -> None:
    config = DecodingConfig(MASK, record=("entropy",))
    rows = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    whole = judge(rows.clone(), None, "confidence", config)
    joined = join([judge(tile.clone(), None, "confidence", config) for tile in rows.split(3)])
    assert torch.equal(whole.tokens, joined.tokens)
    assert torch.equal(whole.score, joined.score)
    assert whole.entropies is not None
    assert joined.entropies is not None
    assert torch.equal(whole.entropies, joined.entropies)
    assert joined.logprobs is None


@pytest.mark.parametrize("record", [(), ("logprob",), ("entropy", "logprob")])
def test_draws_travel_as_one_tensor(record: tuple[str, ...]) -> None:
    rows = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    rows[3, 0] = math.nan
    drawn = judge(rows, None, "confidence", DecodingConfig(MASK, record=record))
    words = drawn.packed()
    assert words.shape == (3 + len(record), 7)
    back = drawn.unpacked(words.clone())
    for name, column in vars(drawn).items():
        found = vars(back)[name]
        assert (column is None) == (found is None), name
        if column is not None:
            assert found.dtype == column.dtype
            assert torch.equal(found.nan_to_num(), column.nan_to_num()), name


def test_a_card_applies_the_head_once_and_judges_as_much_as_fits() -> None:
    card, cpu = torch.device("cuda"), torch.device("cpu")
    assert row_tiles(151_936, torch.float32, cpu) == RowTiles(64, 64)
    tiles = row_tiles(151_936, torch.bfloat16, card)
    assert tiles.product >= 128 * 4, "128 sequences in blocks of 4"
    assert tiles.judged * 151_936 * 4 <= JUDGED_BYTES < (tiles.judged + 1) * 151_936 * 4
    assert row_tiles(10**9, torch.float32, card) == RowTiles(1, 1)


@pytest.mark.parametrize(("tiles", "products"), [((64, 64), 1), ((5, 2), 3), ((100, 3), 1), ((1, 1), 12)])
def test_tiles_of_rows_change_nothing(build_tiny_model, monkeypatch, tiles: tuple[int, int], products: int) -> None:
    model = build_tiny_model().double()
    prompts, config = [[5, 6, 7, 8], [1, 2, 3, 4], [9] * 8], DecodingConfig(47, 4, 2, 8, temperature=0.7)
    expected = decode(model, prompts, config)
    calls = []
    model.lm_head.register_forward_hook(lambda *given: calls.append(len(given[2])))
    monkeypatch.setattr("t3d.decoding.runner.row_tiles", lambda *given: RowTiles(*tiles))
    assert decode(model, prompts, config) == expected
    assert sum(calls[:products]) == 12, "three blocks of four masks, so many rows at a time"


# In responses


def dynamic(model, temperature: float, confidence: str) -> Trajectory:
    config = DecodingConfig(
        47,
        8,
        8,
        max_new_tokens=64,
        temperature=temperature,
        remasking_strategy="low_confidence_dynamic",
        dynamic_threshold=0.9,
        confidence=confidence,
    )
    return decode(model, [[5, 6, 7]], config)[0]


def test_a_threshold_on_scaled_confidence_hardly_selects_at_low_temperature(build_tiny_model) -> None:
    model = build_tiny_model(initializer_range=0.6)
    scaled, raw = dynamic(model, 0.1, "scaled"), dynamic(model, 0.1, "raw")
    # Of 64 tokens in 9 blocks: nearly whole blocks per step here, a token or two per step there.
    assert 2 * scaled.num_steps < raw.num_steps


def test_recorded_values_belong_to_the_revealed_tokens(tiny_model) -> None:
    config = DecodingConfig(47, 4, 2, max_new_tokens=14, temperature=0.5, record=("logprob", "entropy"))
    prompts = [[5, 6, 7], [1, 2, 3, 4, 5, 6], [9]]
    bare = decode(tiny_model, prompts, DecodingConfig(47, 4, 2, max_new_tokens=14, temperature=0.5), max_active=2)
    for stream, done in enumerate(decode(tiny_model, prompts, config, max_active=2)):
        assert done.response_ids == bare[stream].response_ids, "recording changes nothing"
        assert bare[stream].logprobs is bare[stream].entropies is None
        plain = decode_plain(tiny_model, prompts[stream], config, stream)
        assert done.logprobs == pytest.approx(plain.logprobs, abs=1e-5)
        assert done.entropies == pytest.approx(plain.entropies, abs=1e-5)
        assert done.logprobs is not None
        assert done.entropies is not None
        assert len(done.logprobs) == len(done.entropies) == 14
        assert max(done.logprobs) < 0 < min(done.entropies) <= max(done.entropies) < math.log(48)

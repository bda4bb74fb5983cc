import pytest

from t3d.objectives.registry import OBJECTIVES


@pytest.mark.parametrize(
    ("name", "states", "terms"),
    [
        ("sft", "random", {"cross_entropy": 1}),
        ("redi", "random", {"cross_entropy": 1}),
        ("dparallel", "all_mask", {"cross_entropy": 1, "certainty": 2}),
        ("td", "trace", {"cross_entropy": 1}),
        ("ddo", "trace", {"ddo": 1}),
        ("t3d", "trace", {"ddo": 1, "path": 0.2}),
        ("near_far", "trace", {"path": 1, "soft": 1}),
    ],
)
def test_presets_are_the_papers_table_and_ours(name: str, states: str, terms: dict[str, float]) -> None:
    preset = vars(OBJECTIVES[name])
    assert {term: weight for term, weight in preset.items() if term != "states" and weight} == terms
    assert preset["states"] == states

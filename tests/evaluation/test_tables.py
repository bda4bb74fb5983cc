import json

import pytest

from t3d.evaluation.tables import markdown, run_table
from t3d.rollout import run as rollout_module

CELL_FIELDS = {
    *("model", "dataset", "block_size", "denoising_steps", "n", "acc", "stderr"),
    *("tokens_per_step", "tokens_per_forward"),
}


@pytest.fixture
def table(settings, checkpoint):
    """A grid of one model under two names, by two decodings."""
    return settings(
        f"table.checkpoints={{teacher: {checkpoint}, student: {checkpoint}}}",
        "table.decodings=[[4, 2], [8, 2]]",
    )


def cell(model: str, dataset: str, block_size: int, acc: float, n: int = 50) -> dict:
    figures = {"n": n, "acc": acc, "stderr": 0.05, "tokens_per_step": 2.0, "tokens_per_forward": 1.8}
    return {"model": model, "dataset": dataset, "block_size": block_size, "denoising_steps": 2, **figures}


def test_a_table_has_a_cell_per_model_and_decoding(table, tmp_path):
    cells = run_table(table)
    assert [(c["model"], c["block_size"], c["denoising_steps"]) for c in cells] == [
        ("teacher", 4, 2),
        ("teacher", 8, 2),
        ("student", 4, 2),
        ("student", 8, 2),
    ]
    assert all(set(c) == CELL_FIELDS for c in cells)
    assert {c["n"] for c in cells} == {10}
    assert cells[0]["tokens_per_step"] < cells[1]["tokens_per_step"]
    assert {**cells[2], "model": "teacher"} == cells[0]
    folder = tmp_path / "results"
    assert json.loads((folder / "table.json").read_text()) == cells
    assert (folder / "table.md").read_text() == markdown(cells)


def test_a_second_run_decodes_nothing(table, monkeypatch):
    cells = run_table(table)
    monkeypatch.setattr(rollout_module, "_decode", lambda *_: pytest.fail("decoded again"))
    assert run_table(table) == cells


def test_an_interrupted_table_goes_on_where_it_was(table, monkeypatch):
    decode, calls = rollout_module._decode, []

    def dying(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        decode(*arguments)

    monkeypatch.setattr(rollout_module, "_decode", dying)
    with pytest.raises(KeyboardInterrupt):
        run_table(table)
    assert len(run_table(table)) == 4
    assert len(calls) == 3 + 2


def test_the_markdown_is_a_row_per_model_and_data_set():
    cells = [
        cell("teacher", "A", 4, 0.5),
        cell("teacher", "A", 8, 0.25),
        cell("student", "A", 4, 1),
        cell("student", "A", 8, 0),
    ]
    assert markdown(cells) == (
        "| model | data set | block 4, 2 steps | block 8, 2 steps |\n"
        "|---|---|---|---|\n"
        "| teacher | A | 50.0 ± 5.0 (2.00) | 25.0 ± 5.0 (2.00) |\n"
        "| student | A | 100.0 ± 5.0 (2.00) | 0.0 ± 5.0 (2.00) |\n"
        "\n"
        "Accuracy in % ± standard error (tokens per step); n = 50.\n"
    )


def test_data_sets_of_several_sizes_show_each_size():
    cells = [cell("m", "A", 4, 0.5, n=500), cell("m", "B", 4, 0.5, n=164)]
    assert markdown(cells).endswith("n = 164, 500.\n")

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from t3d.errors import DataError
from t3d.rollout import run as rollout_module
from t3d.tables.fill import load_table, run_table
from tests import launching

ROOT = Path(__file__).parents[2]
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


def test_a_table_has_a_cell_per_model_and_decoding(table, tmp_path):
    text = run_table(table)
    folder = tmp_path / "results"
    cells = json.loads((folder / "table.json").read_text())
    assert [(c["model"], c["block_size"], c["denoising_steps"]) for c in cells] == [
        ("teacher", 4, 2),
        ("teacher", 8, 2),
        ("student", 4, 2),
        ("student", 8, 2),
    ]
    assert all(set(c) >= CELL_FIELDS for c in cells)
    assert {c["n"] for c in cells} == {10}
    assert cells[0]["tokens_per_step"] < cells[1]["tokens_per_step"]
    assert {**cells[2], "model": "teacher"} == cells[0]
    assert (folder / "table.md").read_text() == text
    assert {path.name for path in folder.iterdir()} == {
        f"table.{suffix}" for suffix in ("md", "csv", "tex", "json", "config.yaml")
    }


def test_a_second_run_decodes_nothing_and_ends_the_same(table, monkeypatch, tmp_path):
    text = run_table(table)
    before = {path: path.read_bytes() for path in (tmp_path / "results").iterdir()}
    monkeypatch.setattr(rollout_module, "_decode", lambda *_: pytest.fail("decoded again"))
    assert run_table(table) == text
    assert {path: path.read_bytes() for path in (tmp_path / "results").iterdir()} == before


def test_a_table_is_read_back_as_it_was_laid_out(table, tmp_path):
    run_table(table)
    runs, layout = load_table(tmp_path / "results" / "table.json")
    assert layout == table.table
    assert [run.results.metrics.n for run in runs if run.results is not None] == [10] * 4
    assert all(run.outcomes is not None and len(run.outcomes.graded) == 10 for run in runs)


def test_empty_cells_are_written_and_read_back(settings, checkpoint, tmp_path):
    config = settings(
        f"table.checkpoints={{here: {checkpoint}, gone: no/where/else}}",
        "table.decodings=[[4, 2]]",
        "table.skip_missing=true",
    )
    assert "| gone | TinyMath | -- |" in run_table(config)
    cells = json.loads((tmp_path / "results" / "table.json").read_text())
    assert [(cell["acc"] is None, cell["cell"] is None) for cell in cells] == [(False, False), (True, True)]
    runs, _ = load_table(tmp_path / "results" / "table.json")
    assert [run.results is None for run in runs] == [False, True]


@pytest.mark.parametrize("content", ["[1]", '[{"acc": 1}]'])
def test_another_list_is_no_table(table, tmp_path, content):
    run_table(table)
    path = tmp_path / "results" / "table.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"table\.json, record 0: expected a cell of a table"):
        load_table(path)


@pytest.mark.slow
def test_processes_of_a_launch_fill_one_table_and_print_it_once(table, settings, checkpoint, tmp_path):
    alone = run_table(table)
    first, second = launching.launch(
        2,
        [
            *("eval.py", f"experiment.project={tmp_path / 'launched'}", f"table.name={table.table.name}"),
            *(
                f"table.checkpoints={{teacher: {checkpoint}, student: {checkpoint}}}",
                "table.decodings=[[4, 2], [8, 2]]",
            ),
            *(f"evaluation.eval_dataset={settings().evaluation.eval_dataset}", "rollout.device=cpu"),
            *(f"rollout.max_token={table.rollout.max_token}", f"rollout.temperature={table.rollout.temperature}"),
        ],
    )
    assert (first.returncode, second.returncode) == (0, 0), second.stderr
    assert first.stdout.endswith(alone)
    assert alone not in second.stdout
    assert (tmp_path / "launched/results/table.md").read_text() == alone


@pytest.mark.slow
def test_a_table_killed_twice_ends_as_if_it_had_not_been(settings, checkpoint, tmp_path):
    def command(project: str) -> list[str]:
        return [
            *(sys.executable, "eval.py", f"experiment.project={tmp_path / project}"),
            *(f"table.checkpoints={{m: {checkpoint}}}", "table.decodings=[[4, 4], [4, 2], [8, 8]]"),
            *(f"evaluation.eval_dataset={settings().evaluation.eval_dataset}", "rollout.device=cpu"),
            *("rollout.max_token=80", "rollout.temperature=0.7", "rollout.max_active=1", "evaluation.limit=6"),
            "rollout.num_response_per_task=3",  # so that a cell takes a while
        ]

    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    for reached in ("cells/*/temp_data/*.partial-*.jsonl", "cells/*/cell.json"):
        process = subprocess.Popen(command("killed"), cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
        while process.poll() is None and not list(tmp_path.glob(f"killed/{reached}")):
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.glob("killed/cells/*/cell.json")}
    assert 1 <= len(finished) < 3
    for project in ("killed", "whole"):
        subprocess.run(command(project), cwd=ROOT, env=environment, check=True, capture_output=True)
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in finished.items())
    for suffix in ("md", "csv", "tex"):
        whole = (tmp_path / "whole" / "results" / f"table.{suffix}").read_bytes()
        assert (tmp_path / "killed" / "results" / f"table.{suffix}").read_bytes() == whole

"""The paper's tables, as their configurations lay them out."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from t3d.arena.settings import ArenaConfig
from t3d.config import EvalConfig, load_config
from t3d.tables.cells import Run, every_cell
from t3d.tables.layout import Grid, lay_out

ROOT = Path(__file__).parents[1]
METHODS = ["Original", "SFT", "ReDi", "dParallel", "Naive TD", "T3D (ours)"]
ABLATIONS = ["Naive TD", "Naive TD + path", "Naive TD + random", "Naive TD + path + random", "DDO", "DDO + random"]
SETS = ["MATH500", "GSM8K", "MBPP", "HumanEval"]


def load(path: str) -> EvalConfig:
    return load_config(EvalConfig, [f"config={ROOT / 'configs' / path}"], "", "")


def empty(path: str) -> Grid:
    """The table with every cell missing: its layout alone."""
    config = load(path)
    return lay_out([Run(cell.place) for cell in every_cell(config)], config.table)


def labels(grid: Grid) -> list[list[tuple[str, ...]]]:
    return [[row.labels for row in section.rows] for section in grid.sections]


@pytest.mark.parametrize("folder", ["tables", "toy/tables"])
@pytest.mark.parametrize("number", range(1, 8))
def test_each_is_a_table_of_its_own_name(folder, number):
    config = load(f"{folder}/table{number}.yaml")
    assert config.table.name == f"table{number}"
    assert config.experiment.project == ("toy_paper" if "toy" in folder else "paper")
    assert config.rollout.temperature == 0.1


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("**/tables/*.yaml")), ids=str)
def test_every_row_can_be_named_on_a_command_line_as_it_is(path):
    config = load_config(EvalConfig, [f"config={path}"], "", "")
    for row in config.table.checkpoints:
        assert re.fullmatch(r"[a-z0-9_.]+", row)
        changed = load_config(EvalConfig, [f"config={path}", f"table.checkpoints.{row}=other"], "", "")
        assert changed.table.checkpoints == config.table.checkpoints | {row: "other"}


def test_the_papers_rows_are_called_as_the_folders_of_their_runs():
    for number in range(1, 8):
        for row, path in load(f"tables/table{number}.yaml").table.checkpoints.items():
            assert row == "original" or path == f"experiments/{{base}}/{{data_type}}/{row}/ckpt/optimized"


def test_table_1():
    grid = empty("tables/table1.yaml")
    assert [section.label for section in grid.sections] == ["SDAR-1.7B-Chat", "SDAR-4B-Chat"]
    assert labels(grid) == [[(tokps, method) for tokps in ("2", "4") for method in METHODS]] * 2
    assert grid.column_heads == (
        *((f"block {size}", name) for size in (4, 8) for name in SETS),
        ("", "average (%)"),
        ("", "improvement (%)"),
    )
    assert "never bold: Original, SFT" in grid.notes


def test_table_2():
    grid = empty("tables/table2.yaml")
    assert [section.label for section in grid.sections] == ["SDAR-1.7B-Chat", "SDAR-4B-Chat"]
    assert labels(grid) == [[(method,) for method in METHODS]] * 2
    assert grid.column_heads == tuple((name,) for name in SETS)


def test_table_3():
    grid = empty("tables/table3.yaml")
    assert [section.label for section in grid.sections] == SETS
    assert labels(grid) == [[(method,) for method in METHODS if method != "SFT"]] * 4
    assert [head for (head,) in grid.column_heads] == ["TPS", "latency (s)", "avg steps", "avg len", "acc (%)"]
    config = load("tables/table3.yaml")
    assert config.table.strategies == ["low_confidence_dynamic"]
    assert config.rollout.dynamic_threshold == 0.9


@pytest.mark.parametrize("folder", ["tables", "toy/tables"])
def test_table_4(folder):
    grid = empty(f"{folder}/table4.yaml")
    assert labels(grid) == [
        [("1", "4", "4"), ("1", "8", "8"), ("2", "8", "4"), ("4", "4", "1"), ("4", "8", "2"), ("8", "8", "1")]
    ]
    assert [head for (head,) in grid.column_heads] == ["λ = 0.05", "λ = 0.2", "λ = 0.5"]


@pytest.mark.parametrize(("number", "decoding"), [(5, [4, 4]), (6, [8, 4]), (7, [8, 2])])
@pytest.mark.parametrize(("folder", "ours"), [("tables", " (ours)"), ("toy/tables", "")])
def test_tables_5_to_7(folder, ours, number, decoding):
    grid = empty(f"{folder}/table{number}.yaml")
    last = [] if number == 5 else ["DDO + path"]
    rows = ["Original", "SFT", "ReDi", *ABLATIONS, *last, "DDO + path + random" + ours]
    assert labels(grid) == [[(row,) for row in rows]]
    assert len(grid.column_heads) == 1
    assert load(f"{folder}/table{number}.yaml").table.decodings == [decoding]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_toy_tables_have_the_papers_rows(number):
    (rows,) = labels(empty(f"toy/tables/table{number}.yaml"))
    methods = [method for method in METHODS if number != 3 or method != "SFT"]
    assert [row[-1].replace("sharpening fakes", "ours") for row in rows] == methods * (2 if number == 1 else 1)


def test_make_paper_runs_the_arena_and_fills_every_table(tmp_path):
    """The script with a stand-in for Python, which notes its arguments; tests/arena runs and plans the arena itself."""
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n')
    python.chmod(0o755)
    smaller = {"BIN": "bin", "PAPER_SEEDS": "3 4", "PAPER_STEPS": "7", "PAPER_PROBLEMS": "9", "PAPER_ROLLOUTS": "8"}
    subprocess.run([ROOT / "t3d/toy/paper.sh"], cwd=tmp_path, env=os.environ | smaller, check=True)
    arena, *tables, meter, report, page = (tmp_path / "calls").read_text().splitlines()
    module, *keys = arena.removeprefix("-m ").split()
    config = load_config(ArenaConfig, keys, "", "")
    assert (module, config.name, config.folder, config.links) == ("t3d.arena", "paper", "toy_paper", "train")
    assert (config.seeds, config.common) == ([3, 4], "training.max_steps=7")
    assert (config.num_problems, config.num_rollouts) == (9, 8)
    assert [table.split()[1:] for table in tables] == [
        [f"config=configs/toy/tables/table{number}.yaml", "evaluation.limit=9"] for number in range(1, 8)
    ]
    assert meter == "-m t3d.tables.meter config=configs/toy/tables/table1.yaml evaluation.limit=9"
    assert report.startswith("-m t3d.tables.report")
    assert "toy_paper/results/meter-table1.json" in report
    assert page.startswith("-m t3d.arena.page toy_paper/results/paper.json")
    for number in range(1, 8):
        for path in load(f"toy/tables/table{number}.yaml").table.checkpoints.values():
            assert path == "t3d/toy/teacher" or Path(path).parts[2] in config.rows, path

"""The decode bench: what its file holds (the figures are the machine's)."""

import importlib
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def bench(monkeypatch):
    """The script, beside the modules of its folder."""
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("decode")


def test_a_line_holds_what_readers_of_the_file_ask_for(bench, monkeypatch):
    monkeypatch.setattr(bench, "PAIRS_S", 0)
    line = bench.measure(bench.toy_subject(), num_prompts=2, block_size=4, steps=2, repeats=1)
    assert (line["model"], line["num_prompts"], line["block_size"], line["denoising_steps"]) == ("toy-teacher", 2, 4, 2)
    speeds = line["tokens_per_second"]
    assert {"plain", "batched", "engine"} <= speeds.keys()
    assert line["times_faster"]["plain"] == pytest.approx(speeds["engine"] / speeds["plain"])
    assert line["forwards_per_block"]["engine"] <= 2 < line["forwards_per_block"]["plain"]
    assert line["efficiency"] > 0
    assert line["peak_mb"] > line["extra_mb"]["engine"]

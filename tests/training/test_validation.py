"""Validation while training: the figures of an evaluation, and not one bit of the training changed."""

import copy
import dataclasses
import json
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate.utils import set_seed
from safetensors.torch import load_file

from t3d.config import EvalConfig, TrainConfig, load_config
from t3d.decoding import iter_decode
from t3d.errors import ConfigError, DeviceFullError, UserError
from t3d.evaluation.run import evaluate
from t3d.storage.paths import TOY_TEACHER
from t3d.training import validation
from t3d.training.checkpoint import META
from t3d.training.loop import train
from t3d.training.validation import decoding_copy
from tests.training.test_loop import arguments, assert_equal, metrics

RANDOM_STATES = "random_states_0.pkl"
"""Accelerate's file of random streams."""

FAILED: dict[str, Any] = {"response_ids": [], "step_map": [], "finish_reason": "error", "error": "spoilt"}


@pytest.fixture
def keys(checkpoint, trajectories, dataset, tmp_path) -> Callable[..., list[str]]:
    """Builds the arguments of a run in the folder `name` that validates behind every step."""

    def build(name: str, *overrides: str) -> list[str]:
        own = [
            "validation.every=1",
            f"validation.dataset={dataset}",
            "validation.max_token=14",
            "training.objective=td",
        ]
        return arguments(checkpoint, trajectories, tmp_path / name, *own, *overrides)

    return build


@pytest.fixture
def scored(monkeypatch) -> Callable[..., None]:
    """Makes the accuracies at 4/1 those of the given list, step by step: an untrained network solves nothing."""

    def score(*values: float) -> None:
        def judge(job: Any, _decoded: Any, _data_type: str) -> dict[str, float]:
            return {"acc": next(left[job.decoding.denoising_steps]), "stderr": 0.0, "tokens_per_forward": 1.0}

        left = {1: iter(values), 2: iter([0.5] * len(values))}
        monkeypatch.setattr(validation, "_figures", judge)

    return score


def run(given: list[str]) -> dict[str, torch.Tensor]:
    return load_file(train(load_config(TrainConfig, given, "", "")) / "model.safetensors")


MEASURED = ("tokens_per_second", "seconds/", "peak_memory_gib")
"""How names of metrics begin that two equal runs need not agree on."""


def without_validation(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    own = ("validation/", *MEASURED)
    return [{name: value for name, value in line.items() if not name.startswith(own)} for line in lines]


@pytest.mark.parametrize("objective", ["t3d", "dparallel"])
def test_training_is_the_same_bit_for_bit_with_and_without_validation(keys, tmp_path, objective):
    """Weights, every other metric, and the whole state from which a run continues, random streams included."""
    weights = []
    for name, every in (("off", 0), ("on", 1)):
        set_seed(0)  # of the streams that no run seeds: both begin alike
        weights.append(run(keys(name, f"validation.every={every}", f"training.objective={objective}")))
    assert_equal(*weights)
    off, on = metrics(tmp_path / "off"), metrics(tmp_path / "on")
    assert without_validation(on) == without_validation(off)
    assert all("validation/acc" in line for line in on)
    folder = "state/step-000003"
    for path in sorted((tmp_path / "off" / folder).rglob("*")):
        if path.is_file() and path.name not in (RANDOM_STATES, META):
            other = tmp_path / "on" / path.relative_to(tmp_path / "off")
            assert path.read_bytes() == other.read_bytes(), path.name
    told = [json.loads((tmp_path / name / folder / META).read_text()) for name in ("off", "on")]
    for one in told:
        del one["files"][RANDOM_STATES]  # its size follows the numbers in it, see below
    assert told[0] == told[1]
    streams = [torch.load(tmp_path / name / folder / RANDOM_STATES, weights_only=False) for name in ("off", "on")]
    for one in streams:
        del one["random_state"]  # from which beartype draws the entries that it checks
    assert repr(streams[0]) == repr(streams[1])
    assert torch.equal(*(one["torch_manual_seed"] for one in streams))


def test_figures_are_those_of_an_evaluation_of_the_same_steps_checkpoint(keys, dataset, tmp_path):
    """The built-in teacher, so that some answers are right."""
    run(keys("run", "training.max_steps=1", "validation.max_token=48", f"model.pretrained_model={TOY_TEACHER}"))
    (line,) = metrics(tmp_path / "run")
    for steps in (2, 1):
        given = [
            f"experiment.output_dir={tmp_path / f'eval-{steps}'}",
            f"evaluation.checkpoint_path={tmp_path / 'run/ckpt/optimized'}",
            f"evaluation.eval_dataset={dataset}",
            f"rollout.denoising_steps_per_block={steps}",
            "rollout.max_token=48",
        ]
        figures = evaluate(load_config(EvalConfig, given, "", "")).results.metrics
        assert line[f"validation/acc_4/{steps}"] == figures.acc
        assert line[f"validation/stderr_4/{steps}"] == figures.stderr
        assert line[f"validation/tokens_per_forward_4/{steps}"] == figures.tokens_per_forward
    assert 0 < line["validation/acc"] < 1


@pytest.mark.parametrize("select", ["mean", "4/1"])
def test_the_best_checkpoint_is_kept_by_name_and_the_first_of_equals_stays(keys, scored, tmp_path, select):
    scored(0.3, 0.6, 0.6)
    run(keys("run", f"validation.select={select}"))
    best, second = (load_file(tmp_path / f"run/ckpt/{name}/model.safetensors") for name in ("best", "step-000002"))
    assert_equal(best, second)
    scores = [line["validation/acc"] for line in metrics(tmp_path / "run")]
    assert scores == pytest.approx([0.3, 0.6, 0.6] if select == "4/1" else [0.4, 0.55, 0.55])
    assert sorted(path.name for path in (tmp_path / "run/ckpt").iterdir()) == [
        "best",
        "optimized",
        "step-000001",
        "step-000002",
    ]


def test_a_decoding_of_its_own_can_decide(keys, scored, tmp_path):
    scored(0.6, 0.3, 0.2)
    run(keys("run", "validation.select=4/2"))
    assert [line["validation/acc"] for line in metrics(tmp_path / "run")] == [0.5] * 3


def test_validations_come_every_so_many_steps_and_behind_the_last(keys, scored, tmp_path):
    scored(0.1, 0.2, 0.3)
    run(keys("run", "validation.every=2", "training.max_steps=5"))
    steps = [line["step"] for line in metrics(tmp_path / "run") if "validation/acc" in line]
    assert steps == [2, 4, 5]


@pytest.mark.parametrize("values", [(0.3, 0.6, 0.2), (0.6, 0.3, 0.5), (0.1, 0.2, 0.3)])
def test_a_resumed_run_keeps_the_same_best_as_an_uninterrupted_one(keys, scored, tmp_path, values):
    """Killed at the worst moment: a later best checkpoint is there, and its line, but not the state of its step."""
    scored(*values)
    weights = run(keys("whole"))
    scored(*values)
    run(keys("cut"))
    for step in ("000002", "000003"):
        shutil.rmtree(tmp_path / "cut/state" / f"step-{step}")
    shutil.rmtree(tmp_path / "cut/ckpt/optimized")
    scored(*values[1:])
    assert_equal(weights, run(keys("cut", "experiment.resume_from=latest")))
    ours, theirs = (load_file(tmp_path / name / "ckpt/best/model.safetensors") for name in ("cut", "whole"))
    assert_equal(ours, theirs)
    drop = ("validation/seconds", *MEASURED)
    lines = [
        [
            {name: value for name, value in line.items() if not name.startswith(drop)}
            for line in metrics(tmp_path / folder)
        ]
        for folder in ("whole", "cut")
    ]
    assert lines[0] == lines[1]


def test_problems_may_not_change_on_resuming_and_how_often_may(keys, tmp_path):
    run(keys("run"))
    again = "experiment.resume_from=latest"
    with pytest.raises(ConfigError, match=r"validation\.limit: expected null, as in the run to resume"):
        run(keys("run", again, "validation.limit=3"))
    run(keys("run", again, "validation.every=2"))


def test_a_run_without_validation_may_begin_one_on_resuming(keys, tmp_path):
    run(keys("run", "validation.every=0"))
    shutil.rmtree(tmp_path / "run/state/step-000003")
    run(keys("run", "experiment.resume_from=latest", "validation.limit=3"))
    assert ["validation/acc" in line for line in metrics(tmp_path / "run")] == [False, False, True]


def test_a_response_that_fails_fails_alone(keys, tmp_path, monkeypatch, caplog):
    def spoilt(*arguments: Any, **options: Any) -> Any:
        for place, trajectory in iter_decode(*arguments, **options):
            failed = dataclasses.replace(
                trajectory, response_ids=[], step_map=[], finish_reason="error", error="spoilt"
            )
            yield place, failed if place == 3 else trajectory

    monkeypatch.setattr(validation, "iter_decode", spoilt)
    run(keys("run", "training.max_steps=1"))
    (line,) = metrics(tmp_path / "run")
    assert line["validation/acc"] == 0
    assert "validation: 1 of 10 responses have no grade and do not count: problem 3, failed: spoilt, ..." in caplog.text


def test_where_all_fail_there_is_no_figure_and_no_best(keys, tmp_path, monkeypatch):
    def spoilt(*arguments: Any, **options: Any) -> Any:
        for place, trajectory in iter_decode(*arguments, **options):
            yield place, dataclasses.replace(trajectory, **FAILED)

    monkeypatch.setattr(validation, "iter_decode", spoilt)
    run(keys("run", "training.max_steps=1"))
    (line,) = metrics(tmp_path / "run")
    assert line["validation/acc"] is None
    assert not (tmp_path / "run/ckpt/best").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["validation.dataset=null"], r"validation\.dataset: expected held-out problems.*found null"),
        (["validation.dataset=/nowhere.json"], r"/nowhere\.json"),
        (["validation.dataset={bad}"], r"bad\.json, record 1, field question"),
        (["validation.decodings=[[4, 5]]"], r"validation\.decodings"),
        (["validation.decodings=[[4, 2], [4, 2]]"], r"validation\.decodings: expected at least one, each once"),
        (["validation.select=8/1"], r"validation\.select: expected one of mean, 4/2, 4/1, found 8/1"),
        (["validation.max_token=5000"], r"validation\.max_token: expected a problem that fits the model"),
        (["model.optimized_name=best"], r"model\.optimized_name: expected a name that no other checkpoint"),
    ],
)
def test_mistakes_are_named_before_training_starts(keys, tmp_path, monkeypatch, overrides, message):
    bad = tmp_path / "bad.json"
    bad.write_text('[{"question": "1 + 1", "ground_truth_answer": "2"}, {"ground_truth_answer": "2"}]')
    monkeypatch.setattr("t3d.training.loop.prepare_models", None)
    with pytest.raises(UserError, match=message):
        run(keys("run", *(override.format(bad=bad) for override in overrides)))
    assert not (tmp_path / "run").exists()


def test_no_memory_for_the_copy_is_one_line(keys, monkeypatch):
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8.00 GiB.")

    monkeypatch.setattr(validation, "decoding_copy", full)
    with pytest.raises(DeviceFullError, match=r"validation\.every: expected memory for a copy of the student"):
        run(keys("run"))


def test_the_copy_is_the_checkpoint_that_would_be_saved(checkpoint, build_tiny_model):
    """In the precision that it is stored in, weights tied and frequencies exact; the student stays as it is."""
    student = build_tiny_model(tie_word_embeddings=True).train()
    shape = copy.deepcopy(student.config)
    shape.dtype = torch.bfloat16
    before = {name: weight.clone() for name, weight in student.state_dict().items()}
    network = decoding_copy(student, shape, torch.device("cpu"))
    assert network.lm_head.weight is network.model.embed_tokens.weight
    assert_equal(network.state_dict(), {name: weight.bfloat16() for name, weight in before.items()})
    assert torch.equal(network.model.rotary_emb.inv_freq, student.model.rotary_emb.inv_freq)
    assert network.model.rotary_emb.inv_freq.dtype == torch.float32
    assert student.training
    assert not network.training
    assert not any(weight.requires_grad for weight in network.parameters())
    assert_equal(before, student.state_dict())

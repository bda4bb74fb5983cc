"""Own data and own prompt through the whole loop, without a line of code: JSON Lines, a wording, and checks between."""

import json
import logging
from pathlib import Path

import pytest

from t3d.config import EvalConfig, TrainConfig, load_config
from t3d.errors import ConfigError, DataError
from t3d.evaluation.run import evaluate
from t3d.rollout import rollout
from t3d.toy.problems import generate
from t3d.training.loop import train

WORDING = "Work out: {problem} (end with \\boxed{})"
OWN = f"evaluation.prompts.math={WORDING}"


@pytest.fixture
def own_data(tmp_path):
    """Two fields per record, one record per line."""
    items = [item for item, _ in zip(generate("test"), range(8), strict=False)]
    kept = ("question", "ground_truth_answer")
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({name: item[name] for name in kept}) + "\n" for item in items))
    return path


@pytest.fixture
def decode(checkpoint, own_data, tmp_path):
    def configure(*overrides: str) -> EvalConfig:
        return load_config(
            EvalConfig,
            [
                f"evaluation.checkpoint_path={checkpoint}",
                f"evaluation.eval_dataset={own_data}",
                f"experiment.output_dir={tmp_path / 'out'}",
                "rollout.max_token=12",
                "execute.num_workers=1",
                *overrides,
            ],
            "",
            "",
        )

    return configure


def training(checkpoint: Path, data: Path, folder: Path, *overrides: str) -> Path:
    settings = ["training.max_steps=1", "training.gradient_accumulation_steps=2", "training.mixed_precision=no"]
    paths = [f"model.pretrained_model={checkpoint}", f"dataset.optimization_data={data}"]
    given = [*settings, *paths, f"experiment.output_dir={folder}", *overrides]
    return train(load_config(TrainConfig, given, "", ""))


def test_a_rollout_asks_in_the_given_wording_and_records_it(decode):
    path = rollout(decode(OWN))
    for record in json.loads(path.read_text()):
        assert f"user\nWork out: {record['question']} (end with \\boxed{{}})<|im_end|>" in record["prompt"]
    assert json.loads(path.with_suffix(".meta.json").read_text())["prompts"] == {"math": WORDING}


def test_another_wording_is_another_rollout(decode):
    first = rollout(decode(OWN)).read_bytes()
    path = rollout(decode())
    assert path.read_bytes() != first
    assert path.with_suffix(".old-1.json").read_bytes() == first


def test_training_takes_the_rollout_file_and_checks_its_wording(checkpoint, decode, tmp_path, caplog):
    data = rollout(decode(OWN))
    with pytest.raises(DataError, match=r"record 0, field prompt: expected a prompt worded as dataset\.prompts says"):
        training(checkpoint, data, tmp_path / "other", "dataset.prompts.math={problem}?")
    training(checkpoint, data, tmp_path / "silent")
    assert "record 0: its prompt has another wording than the built-in one; give it as dataset.prompts" in caplog.text
    caplog.clear()
    training(checkpoint, data, tmp_path / "mine", f"dataset.prompts.math={WORDING}")
    assert "wording" not in caplog.text


def test_a_run_resumes_with_its_own_wording_only(checkpoint, decode, tmp_path):
    data, own = rollout(decode(OWN)), f"dataset.prompts.math={WORDING}"
    training(checkpoint, data, tmp_path / "run", own)
    training(checkpoint, data, tmp_path / "run", own, "experiment.resume_from=latest")
    with pytest.raises(ConfigError, match=r"dataset\.prompts\.math"):
        training(checkpoint, data, tmp_path / "run", "experiment.resume_from=latest")


def test_evaluation_records_the_wording_and_warns_of_another_than_in_training(checkpoint, decode, tmp_path, caplog):
    student = training(checkpoint, rollout(decode(OWN)), tmp_path / "run", f"dataset.prompts.math={WORDING}")
    caplog.set_level(logging.WARNING)
    found = evaluate(decode(OWN, f"evaluation.checkpoint_path={student}"))
    assert json.loads(found.path.read_text())["config"]["evaluation"]["prompts"] == {"math": WORDING}
    assert "evaluation.prompts" not in caplog.text
    other = evaluate(decode(f"evaluation.checkpoint_path={student}"))
    assert other.path != found.path
    assert "evaluation.prompts is empty, and " in caplog.text


def test_a_given_rollout_file_is_graded_with_the_wording_that_it_has(decode):
    path = rollout(decode(OWN))
    found = evaluate(decode(f"evaluation.rollouts={path}"))
    assert found.results.config["evaluation"]["prompts"] == {"math": WORDING}
    with pytest.raises(ConfigError, match=r"evaluation\.prompts: expected those that .* was decoded with"):
        evaluate(decode(f"evaluation.rollouts={path}", "evaluation.prompts.math={problem}"))

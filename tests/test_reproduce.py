"""One command for all stages: it says what it runs, runs it, and goes on where it stopped."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from t3d import reproduce
from t3d.config import EvalConfig, load_config
from t3d.errors import ConfigError, DataError, UserError
from t3d.reproduce import ReproduceConfig, Stage, main, stages
from t3d.toy.problems import main as write_problems

ROOT = Path(__file__).parents[1]


def planned(*arguments: str) -> list[Stage]:
    return list(stages(load_config(ReproduceConfig, list(arguments), "", "")))


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """A repository whose data/ is empty."""
    for name in ("configs", "eval.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    ("data_type", "train", "tests"),
    [("math", "MATH_train", ["MATH500", "GSM8K"]), ("code", "PrimeIntellect", ["MBPP", "HumanEval"])],
)
def test_every_path_follows_from_base_and_kind_of_problem(data_type, train, tests):
    *downloads, rollout, training, evaluation = planned("base=JetLM/SDAR-1.7B-Chat", f"data_type={data_type}")
    assert [stage.writes for stage in downloads] == [f"data/{name}.json" for name in (train, *tests)]
    assert Path(rollout.writes).name == f"outputs-eval-SDAR-1.7B-Chat-{train}.json"
    assert f"evaluation.data_type={data_type}" in rollout.command
    assert training.writes == f"experiments/SDAR-1.7B-Chat/{data_type}/t3d/ckpt/optimized"
    assert f"dataset.optimization_data={rollout.writes}" in training.command
    assert training.command[:2] == ["accelerate", "launch"]
    assert "table.checkpoints.Original=JetLM/SDAR-1.7B-Chat" in evaluation.command
    assert f"table.checkpoints.T3D={training.writes}" in evaluation.command
    assert evaluation.writes.endswith(f"eval/results/SDAR-1.7B-Chat-{data_type}.md")


@pytest.mark.usefixtures("fresh")
def test_a_base_may_have_any_name(tmp_path):
    problems = tmp_path / "my problems, [v1]: b.json"
    problems.write_text("[]")
    *_, evaluation = planned(
        "base=my models, v1: [x]/SDAR", f"eval_datasets=['{problems}']", f"train_dataset={problems}"
    )
    table = load_config(EvalConfig, evaluation.command[len(reproduce.T3D) + 1 :], "", "").table
    assert table.checkpoints["Original"] == "my models, v1: [x]/SDAR"
    assert table.datasets == [str(problems)]


@pytest.mark.usefixtures("fresh")
def test_a_dry_run_says_everything_and_runs_nothing(caplog, monkeypatch):
    monkeypatch.setattr(reproduce.subprocess, "run", lambda *_, **__: pytest.fail("ran"))
    caplog.set_level(logging.INFO)
    main(["base=JetLM/SDAR-4B-Chat", "--dry-run"])
    for words in ("== download of MATH_train", "== rollout", "== training", "== evaluation", "reads:", "writes:"):
        assert words in caplog.text


@pytest.mark.usefixtures("fresh")
def test_mistakes_are_told_before_anything_runs():
    with pytest.raises(DataError, match=r"mine\.jsonl: expected a data file"):
        planned("base=x", "train_dataset=mine.jsonl")
    with pytest.raises(ConfigError, match=r"launcher: expected the words of a command, found python ' \("):
        planned("base=JetLM/x", "launcher=python '")
    with pytest.raises(ConfigError, match=r"training\.max_step.*nearest: training\.max_steps"):
        planned("base=x", "training_keys=[training.max_step=1]")


def test_it_works_in_any_folder_with_the_configurations_that_come_with_t3d(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    training = planned("base=JetLM/SDAR-1.7B-Chat")[-2]
    launch = ["--config_file", str(ROOT / "accelerate_configs/1_node_8_gpus_deepspeed_zero1.yaml")]
    assert training.command[:7] == ["accelerate", "launch", *launch, "-m", "t3d", "train"]
    with pytest.raises(ConfigError, match=r"accelerate_configs/mine\.yaml: expected a YAML file, found none there"):
        planned("base=x/y", "launcher=accelerate launch --config_file accelerate_configs/mine.yaml")


def test_a_stage_that_fails_ends_it(tmp_path):
    stage = Stage("rollout", [sys.executable, "-c", "raise SystemExit(3)"], [], "")
    with pytest.raises(UserError, match=r"the stage rollout: expected exit status 0 .*, found 3"):
        reproduce.run(stage, dry_run=False)
    with pytest.raises(ConfigError, match="launcher: expected a command that is installed, found no-such-launcher"):
        reproduce.run(Stage("training", ["no-such-launcher"], [], ""), dry_run=False)


@pytest.mark.slow
def test_all_stages_run_and_a_second_time_nothing_is_done_again(checkpoint, tmp_path):
    for split in ("train", "test"):
        write_problems(["--split", split, "--limit", "4", "--out", str(tmp_path / f"{split}.json")])
    tiny = "rollout.max_token=8, execute.num_workers=1"
    trained = "training.max_steps=1, training.global_batch_size=2, training.mixed_precision=no"
    command = [
        *(
            sys.executable,
            "-m",
            "t3d.reproduce",
            f"base={checkpoint}",
            f"launcher={sys.executable}",
            "decodings=[[4, 1]]",
        ),
        *(f"train_dataset={tmp_path / 'train.json'}", f"eval_datasets=[{tmp_path / 'test.json'}]"),
        f"rollout_keys=[experiment.output_dir={tmp_path / 'rollouts'}, rollout.max_token=8]",
        f"training_keys=[experiment.output_dir={tmp_path / 'run'}, {trained}]",
        f"evaluation_keys=[experiment.output_dir={tmp_path / 'eval'}, {tiny}]",
    ]
    kept = {}
    for _ in range(2):
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr[-3000:]
        assert ended.stderr.count("took:   ") == 3
        found = {
            path: path.stat().st_mtime_ns
            for name in ("rollouts", "run/ckpt", "eval/cells")
            for path in (tmp_path / name).rglob("*")
            if path.is_file()
        }
        assert not kept or kept == found
        kept = found
    rows = json.loads((tmp_path / "eval/results/checkpoint-math.json").read_text())
    assert {row["model"] for row in rows} == {"Original", "T3D"}

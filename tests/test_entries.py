"""The entry points as people run them: real processes, from the folders that the release names."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from t3d.toy.problems import main as write_problems

ROOT = Path(__file__).parents[1]


def run(folder: Path, *command: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def assert_one_line(ended: subprocess.CompletedProcess, *said: str) -> None:
    """Checks the answer to a mistake: status 2 and one line, nothing before or after it."""
    assert ended.returncode == 2, ended.stderr
    assert re.fullmatch(r"error: [^\n]*: expected [^\n]*, found [^\n]*\n", ended.stderr), ended.stderr
    assert all(text in ended.stderr for text in said)
    assert ended.stdout == ""


def test_stage_1_and_evaluation_from_the_folders_that_people_use(checkpoint, tmp_path):
    data = tmp_path / "TinyMath.json"
    write_problems(["--limit", "3", "--out", str(data)])
    common = [
        f"experiment.project={tmp_path / 'project'}",
        f"evaluation.checkpoint_path={os.path.relpath(checkpoint, ROOT)}",
        f"evaluation.eval_dataset={data}",
        "rollout.max_token=8",
    ]
    evaluated = run(ROOT, "eval.py", "config=configs/toy/eval.yaml", *common)
    assert evaluated.returncode == 0, evaluated.stderr
    (results,) = (tmp_path / "project" / "results").glob("results-eval-checkpoint-TinyMath-*.json")
    assert json.loads(results.read_text())["n"] == 3
    decoded = tmp_path / "project" / "temp_data" / results.name.replace("results-", "outputs-")
    assert len(json.loads(decoded.read_text())) == 3

    common[1] = f"evaluation.checkpoint_path={os.path.relpath(checkpoint, ROOT / 'sample')}"
    sampled = run(
        ROOT / "sample",
        "sdar_sample.py",
        "config=../configs/toy/sdar_sample.yaml",
        *common,
    )
    assert sampled.returncode == 0, sampled.stderr
    rollouts = tmp_path / "project" / "temp_data" / "outputs-eval-checkpoint-TinyMath.json"
    assert rollouts.read_bytes() == decoded.read_bytes()
    assert "Traceback" not in evaluated.stderr + sampled.stderr


def test_a_misspelt_key_is_answered_in_one_line():
    assert_one_line(
        run(ROOT / "sample", "sdar_sample.py", "config=../configs/sdar_sample.yaml", "rollout.blok_size=4"),
        "command line: rollout.blok_size",
        "nearest: rollout.block_size",
    )


def test_a_missing_data_file_is_answered_in_one_line(checkpoint, tmp_path):
    assert_one_line(
        run(
            ROOT,
            "eval.py",
            "config=configs/eval.yaml",
            f"experiment.project={tmp_path}",
            f"evaluation.checkpoint_path={checkpoint}",
            "evaluation.eval_dataset=Nowhere",
        ),
        "error: Nowhere: expected a data file, Nowhere or ",
        str(Path("data") / "Nowhere.json"),
    )
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_without_weights_is_answered_in_one_line(checkpoint, tmp_path):
    folder, data = tmp_path / "bare", tmp_path / "TinyMath.json"
    shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    write_problems(["--limit", "2", "--out", str(data)])
    assert_one_line(
        run(
            ROOT,
            "eval.py",
            f"experiment.project={tmp_path / 'project'}",
            f"evaluation.checkpoint_path={folder}",
            f"evaluation.eval_dataset={data}",
        ),
        f"error: {folder}: expected weights (*.safetensors), found none",
    )
    assert not [path for path in (tmp_path / "project").rglob("*") if path.is_file()]


def test_training_ends_with_one_line_about_a_missing_data_file(checkpoint, tmp_path):
    ended = run(
        ROOT,
        "train/self_ddo_sdar_full.py",
        "config=configs/toy/t3d.yaml",
        f"experiment.output_dir={tmp_path / 'run'}",
        f"model.pretrained_model={checkpoint}",
        "dataset.optimization_data=Nowhere",
    )
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("error: Nowhere: expected a data file, ")
    assert ended.stderr.count("error: ") == 1
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("folder", "script", "keys"),
    [
        ("sample", "sdar_sample.py", ["rollout.block_size = 4: "]),
        (".", "eval.py", ["evaluation.checkpoint_path = null: ", "table.decodings = []: "]),
        (
            ".",
            "train/self_ddo_sdar_full.py",
            ["model.pretrained_model = required: ", "training.objective = t3d: "],
        ),
    ],
)
def test_help_names_purpose_keys_and_an_example(folder, script, keys):
    ended = run(ROOT / folder, script, "--help")
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    assert re.match(r"[A-Z][^\n]+\.\n", ended.stdout)
    assert all(f"\n  {key}" in ended.stdout for key in keys)
    assert f"{Path(script).name} config=" in ended.stdout.split("\nExample:\n")[1]


@pytest.mark.slow
def test_the_releases_commands_run_one_after_the_other(checkpoint, tmp_path):
    """Stage 1 from sample/, stage 2 from data/, stage 3 by accelerate launch and evaluation from above them."""
    for folder in ("sample", "data"):
        (tmp_path / folder).mkdir()
    write_problems(["--limit", "8", "--out", str(tmp_path / "data/TinyMath.json")])
    decoding = ["evaluation.eval_dataset=TinyMath", "rollout.max_token=12", "experiment.project=mine"]
    sampled = run(
        tmp_path / "sample",
        str(ROOT / "sample/sdar_sample.py"),
        f"config={ROOT}/configs/sdar_sample.yaml",
        f"evaluation.checkpoint_path={checkpoint}",
        *decoding,
    )
    assert sampled.returncode == 0, sampled.stderr
    rollouts = tmp_path / "mine/temp_data/outputs-eval-checkpoint-TinyMath.json"
    rollouts.rename(tmp_path / "data/checkpoint-TinyMath.json")
    renamed = run(
        tmp_path / "data", str(ROOT / "data/rename_key.py"), "--model_name", "checkpoint", "--dataset", "TinyMath"
    )
    assert renamed.returncode == 0, renamed.stderr
    trained = run(
        tmp_path,
        *("-m", "accelerate.commands.launch", "--num_machines", "1", "--machine_rank", "0"),
        *("--main_process_ip", "127.0.0.1", "--main_process_port", "8889"),
        *("--config_file", str(ROOT / "accelerate_configs/cpu.yaml")),
        str(ROOT / "train/self_ddo_sdar_full.py"),
        f"config={ROOT}/configs/ddo_sdar_full_self.yaml",
        f"model.pretrained_model={checkpoint}",
        "dataset.optimization_data=checkpoint-TinyMath_renamed",
        "training.max_steps=2",
        "training.gradient_accumulation_steps=2",
    )
    assert trained.returncode == 0, trained.stderr
    (student,) = tmp_path.glob("experiments/checkpoint/math/t3d/*/ckpt/optimized")
    evaluated = run(
        tmp_path,
        str(ROOT / "eval.py"),
        f"config={ROOT}/configs/eval.yaml",
        "evaluation.checkpoint_path=experiments/checkpoint/math/t3d/ckpt/optimized",
        *decoding,
    )
    assert evaluated.returncode == 0, evaluated.stderr
    (results,) = (tmp_path / "mine/results").glob("results-eval-optimized-TinyMath-checkpoint-math-t3d-*.json")
    assert json.loads(results.read_text())["n"] == 8
    assert json.loads(results.read_text())["checkpoint"] == str(student.relative_to(tmp_path))


def test_a_dry_run_examines_the_command_and_writes_nothing(checkpoint, dataset, tmp_path):
    keys = [
        f"experiment.project={tmp_path / 'project'}",
        f"evaluation.checkpoint_path={checkpoint}",
        f"evaluation.eval_dataset={dataset}",
    ]
    good = run(ROOT, "eval.py", "--dry-run", "rollout.max_token=8", *keys)
    assert good.returncode == 0, good.stderr
    assert good.stdout.startswith("t3d doctor: eval ")
    assert good.stdout.endswith("no errors, no warnings\n") or " warning" in good.stdout.splitlines()[-1]
    bad = run(ROOT, "-m", "t3d.doctor", *keys[:2], "evaluation.eval_dataset=Nowhere")
    assert bad.returncode == 2
    assert "  error    problems        Nowhere: none there\n" in bad.stdout
    assert bad.stderr.splitlines()[-1].startswith("error: doctor: expected a command that will run, found 1 error")
    assert "Traceback" not in good.stderr + bad.stderr
    assert list(tmp_path.iterdir()) == []


WITHOUT = """
import runpy, sys
from t3d.errors import UserError
sys.modules |= dict.fromkeys(["torch", "transformers", "omegaconf", "accelerate", "datasets"])
for script in sys.argv[1:]:
    try:
        runpy.run_path(script)["main"](["--dry-run"])
    except UserError:
        print(script, "is told")
"""


def test_a_dry_run_tells_of_libraries_that_do_not_load():
    scripts = ["sample/sdar_sample.py", "train/self_ddo_sdar_full.py", "eval.py"]
    ended = run(ROOT, "-c", WITHOUT, *scripts)
    assert ended.stderr == ""
    assert [script for script in scripts if f"{script} is told\n" in ended.stdout] == scripts
    assert ended.stdout.count("cannot be loaded: ModuleNotFoundError: import of transformers halted") == 3

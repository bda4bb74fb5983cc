"""Trackers report a run and never end it."""

import json
import math
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from t3d.config import TrainConfig, load_config
from t3d.config.schema import WandbConfig
from t3d.errors import DataError
from t3d.training import trackers
from t3d.training.loop import train
from t3d.training.metrics import MetricsLog

SCRIPT = """
import json, logging, sys
from pathlib import Path
logging.basicConfig(level=logging.INFO)
{before}
from t3d.config import TrainConfig, load_config
from t3d.training.metrics import MetricsLog
config = TrainConfig()
config.experiment.trackers = json.loads(sys.argv[2])
log = MetricsLog(Path(sys.argv[1]), config, 0)
log.write({{"step": 1, "loss/total": 0.5}})
log.close()
print("went on", sorted({{"wandb", "tensorboard"}} & set(sys.modules)))
"""


def report(folder: Path, names: list[str], before: str = "", **environment: str) -> str:
    """Logs one step in a process of its own, on a terminal, and returns all that it says."""
    master, slave = pty.openpty()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(before=before), str(folder), json.dumps(names)],
        env={**kept, "HOME": str(folder), "WANDB_DIR": str(folder), **environment},
        stdin=slave,
        stdout=slave,
        stderr=slave,
        cwd=folder,
    ) as process:
        os.close(slave)
        said = b""
        while chunk := read_terminal(master):
            said += chunk
        assert process.wait(timeout=60) == 0, said.decode()
    os.close(master)
    assert json.loads((folder / "metrics.jsonl").read_text()) == {"step": 1, "loss/total": 0.5}
    return said.decode()


def read_terminal(master: int) -> bytes:
    try:
        return os.read(master, 65536)
    except OSError:  # Linux says so when the last process has left the terminal
        return b""


def test_without_trackers_neither_package_is_imported(tmp_path):
    missing = "sys.modules |= {'wandb': None, 'tensorboard': None}"
    assert "went on" in report(tmp_path, [], missing)


def test_packages_that_are_not_installed_are_one_message_each(tmp_path):
    missing = "sys.modules |= {'wandb': None, 'tensorboard': None}"
    said = report(tmp_path, ["wandb", "tensorboard"], missing)
    assert said.count("training goes on without wandb: ModuleNotFoundError") == 1
    assert said.count("training goes on without tensorboard: ModuleNotFoundError") == 1


def test_wandb_without_a_login_is_one_message_and_asks_nothing(tmp_path):
    said = report(tmp_path, ["wandb", "tensorboard"])
    assert said.count("training goes on without wandb: PermissionError: not logged in (run `wandb login`") == 1
    assert "Enter your choice" not in said
    assert "went on" in said
    assert list((tmp_path / "tensorboard").iterdir())


def test_wandb_works_offline(tmp_path):
    said = report(tmp_path, ["wandb"], WANDB_MODE="offline")
    assert "without wandb" not in said
    [run] = (tmp_path / "wandb").glob("offline-run-*")
    assert list(run.glob("*.wandb"))


CONTINUED = """
import sys
from pathlib import Path
from t3d.config import TrainConfig, load_config
from t3d.training.metrics import MetricsLog
config = TrainConfig()
config.experiment.trackers = ["wandb"]
config.wandb.run_id = sys.argv[3] if len(sys.argv) > 3 else None
log = MetricsLog(Path(sys.argv[1]), config, int(sys.argv[2]))
log.write({"step": int(sys.argv[2]) + 1, "loss/total": 0.5})
log.close()
"""


def wandb_ids(folder: Path, *arguments: str) -> list[str]:
    """Starts a run, or goes on after a step, offline; returns the ids of all wandb runs of the folder, by time."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    command = [sys.executable, "-c", CONTINUED, str(folder), *arguments]
    environment = {**kept, "HOME": str(folder), "WANDB_MODE": "offline"}
    ended = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert "without wandb" not in ended.stderr, ended.stderr
    files = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime)
    return [path.stem.removeprefix("run-") for path in files]


@pytest.mark.slow
def test_a_resumed_run_goes_on_in_its_wandb_run(tmp_path):
    [first] = wandb_ids(tmp_path, "0")
    assert wandb_ids(tmp_path, "1") == [first, first]
    assert wandb_ids(tmp_path, "2", "another")[2] == "another"
    assert wandb_ids(tmp_path, "3")[3] == "another", "the last one is gone on with"


@pytest.mark.slow
def test_a_run_that_starts_again_is_a_new_wandb_run(tmp_path):
    [first] = wandb_ids(tmp_path, "0")
    assert wandb_ids(tmp_path, "0")[1] != first


class Failing(trackers.Tracker):
    name = "failing"
    fails_at = "write"
    calls: list[str]

    def _start(self, folder: Path, config: TrainConfig, first_step: int) -> None:
        self.calls = ["start"]
        self._fail("start")

    def _write(self, metrics: dict[str, float], step: int) -> None:
        self.calls.append("write")
        self._fail("write")

    def _close(self) -> None:
        self.calls.append("close")
        self._fail("close")

    def _fail(self, moment: str) -> None:
        if moment == self.fails_at:
            raise ConnectionError("the service\ndied")


@pytest.mark.parametrize(
    ("fails_at", "calls"),
    [("start", ["start"]), ("write", ["start", "write"]), ("close", ["start", "write", "write", "close"])],
)
def test_a_tracker_that_fails_is_dropped_and_the_run_goes_on(tmp_path, monkeypatch, caplog, fails_at, calls):
    monkeypatch.setattr(Failing, "fails_at", fails_at)
    monkeypatch.setitem(trackers.TRACKERS, "failing", Failing)
    config = TrainConfig()
    config.experiment.trackers = ["failing"]
    metrics = MetricsLog(tmp_path, config, 0)
    for step in (1, 2):
        metrics.write({"step": step})
    metrics.close()
    [tracker] = metrics._trackers
    assert tracker.calls == calls
    assert [record.message for record in caplog.records] == [
        "training goes on without failing: ConnectionError: the service died"
    ]
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'


def test_the_student_is_saved_before_trackers_are_closed(checkpoint, trajectories, tmp_path, monkeypatch):
    """They may take their time over it, and a job may end meanwhile."""
    saved = []

    class Slow(trackers.Tracker):
        name = "slow"

        def _start(self, folder: Path, config: TrainConfig, first_step: int) -> None:
            self._folder = folder

        def _write(self, metrics: dict[str, float], step: int) -> None:
            pass

        def _close(self) -> None:
            saved.append((self._folder / "ckpt/optimized").is_dir())

    monkeypatch.setitem(trackers.TRACKERS, "slow", Slow)
    keys = [f"model.pretrained_model={checkpoint}", f"dataset.optimization_data={trajectories}"]
    keys += [f"experiment.output_dir={tmp_path / 'run'}", "training.max_steps=1", "training.batch_size_lm=2"]
    config = load_config(TrainConfig, [*keys, "training.mixed_precision=no"], "", "")
    config.experiment.trackers = ["slow"]
    train(config)
    assert saved == [True]


@pytest.mark.parametrize(
    ("chosen", "given", "told"),
    [
        ([], {"project": "mine", "entity": "us"}, "wandb.entity, wandb.project: not used, as experiment.trackers"),
        (["tensorboard"], {"run_id": "7"}, "wandb.run_id: not used"),
        ([], {}, None),
        (["wandb"], {"project": "mine"}, None),
    ],
)
def test_a_group_wandb_that_is_filled_in_for_nothing_is_told(chosen, given, told):
    config = TrainConfig(wandb=WandbConfig(**given))
    config.experiment.trackers = chosen
    line = trackers.unused_wandb(config)
    assert (line is None) if told is None else line.startswith(told)


def test_and_it_is_told_where_the_run_starts(tmp_path, caplog):
    trackers.start_trackers(tmp_path, TrainConfig(wandb=WandbConfig(project="mine")), 0)
    assert [record.message.split(":")[0] for record in caplog.records] == ["wandb.project"]


def test_an_earlier_log_is_cut_to_the_resumed_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    MetricsLog(tmp_path, TrainConfig(), 2).write({"step": 3, "lr": 0.5})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3, "lr": 0.5}\n'


def test_what_is_no_number_is_null_in_the_log(tmp_path):
    """As JSON has it; a log of an earlier release is mended."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "grad_norm": Infinity}\n')
    MetricsLog(tmp_path, TrainConfig(), 1).write({"step": 2, "grad_norm": math.inf, "lr": math.nan, "skipped_steps": 1})
    assert path.read_text() == (
        '{"step": 1, "grad_norm": null}\n{"step": 2, "grad_norm": null, "lr": null, "skipped_steps": 1}\n'
    )


@pytest.mark.parametrize("line", ["{", "[]", '{"loss": 1}'])
def test_an_unreadable_line_of_the_log_is_named(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{line}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 2: expected the metrics of one step"):
        MetricsLog(tmp_path, TrainConfig(), 5)

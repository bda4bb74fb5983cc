"""Rollouts as people run them: real processes that are killed, interrupted, launched together or out of disk."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from t3d.errors import UserError
from t3d.rollout import rollout, rollout_path
from t3d.rollout.shard import Shards

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
ENTRY = ROOT / "sample" / "sdar_sample.py"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
LIMITED = (
    "import resource, runpy, sys;"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY));"
    "sys.argv = sys.argv[2:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)


@pytest.fixture
def arguments(checkpoint, dataset, tmp_path) -> Callable[..., list[str]]:
    """The command line's form of the `settings` fixture."""

    def build(*overrides: str) -> list[str]:
        return [
            f"experiment.project={tmp_path}",
            f"evaluation.checkpoint_path={checkpoint}",
            f"evaluation.eval_dataset={dataset}",
            *("rollout.max_token=14", "rollout.denoising_steps_per_block=2", "rollout.temperature=0.7"),
            *("rollout.device=cpu", *overrides),
        ]

    return build


@pytest.fixture
def whole(settings, tmp_path) -> Callable[..., bytes]:
    """What one process writes that nothing disturbs."""

    def decode(*overrides: str) -> bytes:
        return rollout(settings(f"experiment.project={tmp_path / 'whole'}", *overrides)).read_bytes()

    return decode


def run(*command: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=False, timeout=300, env=ENVIRONMENT, cwd=ROOT
    )


def two_shards(path: Path) -> list[Path]:
    return [path.with_suffix(f".partial-{worker}.jsonl") for worker in range(2)]


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_until(reached: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.005)


def members(group: int) -> list[str]:
    """The living processes of a process group."""
    told = subprocess.run(["ps", "-A", "-o", "pgid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in told.splitlines()]
    return [arguments for pgid, state, *arguments in rows if int(pgid) == group and not state.startswith("Z")]


def assert_only_results(path: Path) -> None:
    names = {path.name, path.with_suffix(".meta.json").name, path.with_suffix(".config.yaml").name}
    assert {file.name for file in path.parent.iterdir()} == names


def test_twenty_kills_lose_nothing_and_change_nothing(settings, arguments, whole):
    responses = ["rollout.num_response_per_task=16", "rollout.max_active=2"]
    path = rollout_path(settings(*responses))
    ended = run(str(Path(__file__).with_name("kill_repeatedly.py")), "20", str(path), *arguments(*responses))
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout.split()[0]) >= 20
    assert path.read_bytes() == whole("rollout.num_response_per_task=16")
    assert_only_results(path)


def test_a_dead_worker_is_named_and_another_number_of_workers_goes_on(settings, whole):
    responses = "rollout.num_response_per_task=20"
    config = settings("rollout.num_workers=2", "rollout.max_active=1", responses)
    path = rollout_path(config)
    shards = two_shards(path)

    def kill_the_second() -> None:
        wait_until(lambda: lines(shards[1]) > 5)
        _, second = sorted(multiprocessing.active_children(), key=lambda child: int(child.name.split("-")[-1]))
        os.kill(second.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_the_second)
    killer.start()
    with pytest.raises(UserError) as caught:
        rollout(config)
    killer.join()
    told = re.fullmatch(
        r"rollout worker 1 of 2: expected all of its responses, found an end by SIGKILL, "
        r"(\d+) of 100 missing \(the same command goes on from there\)",
        str(caught.value),
    )
    assert told
    assert 0 < int(told[1]) < 100
    assert lines(shards[0]) == 1 + 100
    assert multiprocessing.active_children() == []
    assert rollout(settings(responses)).read_bytes() == whole(responses)
    assert_only_results(path)


def test_no_worker_outlives_a_kill_or_ctrl_c_and_two_workers_end_as_one_does(settings, arguments, whole):
    responses, workers = "rollout.num_response_per_task=100", "rollout.num_workers=2"
    path = rollout_path(settings())
    shards = two_shards(path)

    def start_and_signal(send: Callable[[int, int], None], number: int) -> tuple[int, str]:
        before = [lines(shard) for shard in shards]
        process = subprocess.Popen(
            [sys.executable, str(ENTRY), *arguments(responses, workers, "rollout.max_active=1")],
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
            start_new_session=True,  # a process group of its own, as a shell gives to a command
            # Whatever runs the tests in the background may ignore Ctrl-C, and what it starts would too.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        wait_until(lambda: all(lines(shard) > 3 + old for shard, old in zip(shards, before, strict=True)))
        send(process.pid, number)
        _, errors = process.communicate(timeout=60)
        wait_until(lambda: not members(process.pid), seconds=10)
        return process.returncode, errors

    status, _ = start_and_signal(os.kill, signal.SIGKILL)
    assert status == -signal.SIGKILL
    status, errors = start_and_signal(os.killpg, signal.SIGINT)  # Ctrl-C goes to the whole group
    assert status == 130, errors
    assert "Traceback" not in errors
    kept = f"interrupted: the finished responses are kept in {path.parent}, the same command goes on from there"
    assert errors.splitlines()[-1] == kept
    stored = Shards(path, json.loads(shards[0].read_text().splitlines()[0])["fingerprint"])
    stored.read()
    assert sum(number in stored for number in range(1000)) == sum(map(lines, shards)) - 2  # nothing is there twice
    assert rollout(settings(responses, workers)).read_bytes() == whole(responses)
    assert_only_results(path)


@pytest.mark.parametrize(
    "launched",
    [
        [],
        # Parts of a model add up their products in another order: equal but for rounding, so no dice.
        ["rollout.tensor_parallel_size=2", "rollout.temperature=0", "rollout.paged=true"],
    ],
    ids=["shared-work", "divided-model"],
)
def test_the_processes_of_a_launch_write_the_file_of_one(settings, arguments, whole, launched):
    responses = "rollout.num_response_per_task=4"
    ended = run(
        *("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
        *(str(ENTRY), *arguments(responses, *launched)),
    )
    if "can divide it" in ended.stderr:
        pytest.skip("this transformers cannot divide a model")
    assert ended.returncode == 0, ended.stderr
    path = rollout_path(settings())
    assert path.read_bytes() == whole(responses, *launched[1:2])
    assert_only_results(path)
    assert ended.stderr.count(f"40 responses, 0 of them failed: {path}") == 1


def test_a_full_disk_is_one_line_and_the_next_run_goes_on(settings, arguments, whole):
    responses = "rollout.num_response_per_task=3"
    expected = whole(responses)
    path = rollout_path(settings())
    shards = two_shards(path)

    def run_with_room_for(size: int, *overrides: str) -> list[str]:
        ended = run("-c", LIMITED, str(size), str(ENTRY), *arguments(responses, *overrides))
        assert ended.returncode == 2, ended.stderr
        assert "Traceback" not in ended.stderr
        return ended.stderr.splitlines()

    room = "expected room to write (the finished responses are kept), found File too large"
    told = run_with_room_for(3000, "rollout.num_workers=2")  # torch 2.8 writes 2,355 bytes as it is loaded
    assert told[-1] == f"error: {shards[0]}: {room}"
    assert f"{shards[1]}: {room}" in told
    assert all(1 < lines(shard) < 16 for shard in shards)
    told = run_with_room_for(len(expected) - 1, "rollout.num_workers=2")
    assert told[-1] == f"error: {path}: expected a place that can be written to, found File too large"
    assert sum(map(lines, shards)) == 2 + 30
    assert not path.exists()
    assert not list(path.parent.glob(".*"))
    assert rollout(settings(responses)).read_bytes() == expected
    assert_only_results(path)

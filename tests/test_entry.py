from t3d.entry import CACHES, SPINS, run_entry, use_cache_root, wait_briefly

import ast
import errno
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from t3d.errors import CheckpointError, ConfigError, DataError, DeviceFullError, UserError
from tests import launching

ROOT = Path(__file__).parents[1]
ENTRIES = ("t3d", "sample", "train", "data")


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """Caches under a folder of the test, levels of loggers and what becomes of signals, forgotten after it."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    levels = {name: logging.getLogger(name).level for name in ("t3d", "__main__")}
    monkeypatch.setenv("T3D_CACHE_ROOT", str(tmp_path))
    for variable in CACHES:
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, SPINS), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_idle_threads_wait_briefly_unless_the_user_says_otherwise(monkeypatch, given, spins):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    wait_briefly()
    assert os.environ.get("GOMP_SPINCOUNT") == spins


def test_every_entry_sets_the_environment_before_it_loads_anything_else():
    files = [*ROOT.glob("*.py"), *(file for name in ENTRIES for file in (ROOT / name).rglob("*.py"))]
    entries = [file for file in files if "run_entry(main)" in file.read_text() and file.name != "entry.py"]
    assert len(entries) > 12
    for file in entries:
        first = next(node for node in ast.parse(file.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom))
        assert isinstance(first, ast.ImportFrom), file
        assert first.module == "t3d.entry", file


def test_the_entries_module_and_the_packages_of_commands_do_not_load_torch():
    packages = {f"t3d.{file.parent.name}" for file in (ROOT / "t3d").glob("*/*.py") if "run_entry(" in file.read_text()}
    code = f"import sys, t3d.entry, {', '.join(sorted(packages))}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_success_leaves_status_0(capsys):
    seen = []
    run_entry(seen.append)
    assert len(seen) == 1
    assert capsys.readouterr().err == ""


def test_news_of_libraries_does_not_reach_the_user_and_their_errors_do(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("DeepSpeed"), "propagate", True)  # not once it is imported

    def main(arguments: list[str]) -> None:
        own = logging.getLogger("DeepSpeed")  # as it is when DeepSpeed is imported after the start
        own.setLevel(logging.WARNING)
        for name in ("accelerate.utils.other", "DeepSpeed"):
            logging.getLogger(name).warning("Removed shared tensor")
            logging.getLogger(name).error("%s failed", name)

    run_entry(main)
    told = dict.fromkeys(record.message for record in caplog.records)  # newer pytests listen at both ends
    assert list(told) == ["accelerate.utils.other failed", "DeepSpeed failed"]


@pytest.mark.parametrize("kind", [ConfigError, DataError, CheckpointError])
def test_a_users_mistake_is_one_line_and_status_2(kind, capsys):
    def main(arguments: list[str]) -> None:
        raise kind("a\nb", "c\r\nd", "e\n\nf")

    with pytest.raises(SystemExit) as caught:
        run_entry(main)
    assert caught.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == "error: a b: expected c d, found e f\n"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.ENAMETOOLONG])
def test_what_a_file_system_refuses_is_one_line_and_status_2(code, capsys):
    def main(arguments: list[str]) -> None:
        raise OSError(code, os.strerror(code), "some/where")

    with pytest.raises(SystemExit) as caught:
        run_entry(main)
    assert caught.value.code == 2
    expected = "a place that this process may use, with room"
    assert capsys.readouterr().err == f"error: some/where: expected {expected}, found {os.strerror(code)}\n"


def test_a_fault_of_the_program_keeps_its_traceback():
    def main(arguments: list[str]) -> None:
        raise FileNotFoundError(errno.ENOENT, "gone", "some/where")

    with pytest.raises(FileNotFoundError):
        run_entry(main)


def test_a_reader_that_goes_ends_it_without_a_word():
    code = """
from t3d.entry import run_entry

def main(arguments):
    while True:
        print("a line")

run_entry(main)
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "a line\n"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_only_the_first_process_of_a_machine_prints_the_line(capsys, monkeypatch):
    def main(arguments: list[str]) -> None:
        raise UserError("a", "b", "c")

    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(SystemExit) as caught:
        run_entry(main)
    assert caught.value.code == 2
    assert capsys.readouterr().err == ""


def test_every_process_tells_of_a_device_of_its_own_that_is_full(capsys, monkeypatch):
    def main(arguments: list[str]) -> None:
        raise DeviceFullError("a", "b", "c")

    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(SystemExit) as caught:
        run_entry(main)
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: a: expected b, found c\n"


@pytest.mark.parametrize(("rank", "told"), [("0", True), ("1", False)])
def test_only_the_first_process_of_a_machine_tells_its_news(monkeypatch, rank, told):
    monkeypatch.setenv("LOCAL_RANK", rank)
    run_entry(lambda arguments: None)
    logger = logging.getLogger("t3d.decoding")
    assert [logger.isEnabledFor(level) for level in (logging.INFO, logging.WARNING)] == [told, True]


@pytest.mark.parametrize(("told", "line"), [((), "interrupted\n"), (("all is kept",), "interrupted: all is kept\n")])
def test_ctrl_c_is_one_line_and_status_130(told, line, capsys):
    def main(arguments: list[str]) -> None:
        raise KeyboardInterrupt(*told)

    with pytest.raises(SystemExit) as caught:
        run_entry(main)
    assert caught.value.code == 130
    assert capsys.readouterr().err == line


def test_a_bug_keeps_its_traceback():
    def main(arguments: list[str]) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        run_entry(main)


FAILING = """
from t3d.entry import run_entry
import sys, time
import torch.distributed as dist
from t3d.errors import ConfigError, UserError
from t3d.rollout.ranks import join_ranks

def wait(*_):  # as leaving NCCL's group does, until the others leave it as well
    time.sleep(1000)

dist.destroy_process_group = wait

def main(arguments):
    ranks = join_ranks()
    if ranks.rank == 1:
        raise {"mistake": ConfigError("key", "this", "that"), "bug": ValueError("a bug")}[arguments[0]]
    dist.barrier()  # never comes

run_entry(main)
"""


@pytest.mark.parametrize(("how", "status"), [("mistake", 2), ("bug", 1)])
def test_a_process_that_fails_alone_ends_although_the_others_wait_for_it(tmp_path, how, status):
    """So that the launcher sees it, and ends them."""
    (tmp_path / "script.py").write_text(FAILING)
    started = time.monotonic()
    ended = launching.launch(2, [str(tmp_path / "script.py"), how])
    assert ended[1].returncode == status
    assert time.monotonic() - started < 60
    assert ("a bug" in ended[1].stderr) == (how == "bug")


def test_compiled_kernels_are_cached_under_the_cache_root(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", "/mine")
    use_cache_root()
    assert os.environ["TRITON_CACHE_DIR"] == "/mine"
    assert os.environ["TORCH_EXTENSIONS_DIR"] == str(tmp_path / "torch_extensions")


def test_each_of_several_machines_has_compiled_kernels_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    use_cache_root()
    assert os.environ["TRITON_CACHE_DIR"] == str(tmp_path / "triton" / socket.gethostname())


def test_a_package_that_does_not_load_is_one_line(capsys):
    def main(arguments: list[str]) -> None:
        raise ImportError("libcudart.so.12:\nno such file", name="flash_attn")

    with pytest.raises(SystemExit) as caught:
        run_entry(main)
    assert caught.value.code == 2
    expected = "Python packages that load (python -m t3d.doctor examines them)"
    assert capsys.readouterr().err == f"error: flash_attn: expected {expected}, found libcudart.so.12: no such file\n"


WAITING = """
import time
from t3d.entry import run_entry

def main(arguments):
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("cleared up", flush=True)

run_entry(main)
"""


def start_waiting(tmp_path: Path, *before: str) -> subprocess.Popen:
    """An entry at its work."""
    script = tmp_path / "waiting.py"
    script.write_text(WAITING)
    process = subprocess.Popen(
        [*before, str(script)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(
    ("number", "line", "status"), [(signal.SIGTERM, "terminated\n", 143), (signal.SIGINT, "interrupted\n", 130)]
)
def test_a_signal_lets_the_work_clear_up_and_is_one_line(tmp_path, number, line, status):
    process = start_waiting(tmp_path, sys.executable)
    process.send_signal(number)
    assert process.communicate(timeout=60) == ("cleared up\n", line)
    assert process.returncode == status


def test_sigterm_ends_a_process_of_a_launch_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    process = start_waiting(tmp_path, sys.executable)
    process.terminate()
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == -signal.SIGTERM


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells a process of its parent's end")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_the_accelerate_launch_that_started_it(tmp_path, number):
    launcher = start_waiting(tmp_path, sys.executable, "-m", "accelerate.commands.launch", "--cpu")
    launcher.send_signal(number)
    out, error = launcher.communicate(timeout=60)  # until the last of both has closed them
    assert out == "cleared up\n"
    assert error.splitlines()[-1] == "terminated"

"""Worker processes: what hangs, crashes, prints or grows costs one pair and nothing else."""

import time

import pytest

from t3d.errors import UserError
from t3d.grading import math_grader, math_workers
from t3d.grading.math_grader import GradeResult, grade_math, grade_math_many
from t3d.grading.math_workers import Reply, Worker

OURS = math_grader.OURS


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """Replaces our comparison in the workers, which start from this process's sys.path, by other code."""

    def install(code):
        (tmp_path / "stand_in.py").write_text(code)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setattr(math_grader, "OURS", "stand_in")

    return install


def test_a_worker_that_hangs_or_dies_is_named_and_replaced(stand_in):
    stand_in(
        "import os, time\n"
        "def same(prediction, truth):\n"
        "    if 'h' in prediction: time.sleep(60)\n"
        "    if 'c' in prediction: os._exit(3)\n"
        "    if 'm' in prediction: raise MemoryError\n"
        "    return True\n"
    )
    began = time.monotonic()
    predictions = ("h+1", "x+2", "c+1", "m+1", "x+3")
    assert grade_math_many([(prediction, "x+1") for prediction in predictions], timeout_s=1) == [
        GradeResult(False, "timeout"),
        GradeResult(True),
        GradeResult(False, "crashed"),
        GradeResult(False, "crashed"),
        GradeResult(True),
    ]
    assert time.monotonic() - began < 30


def test_a_limit_is_computing_time(stand_in):
    """A worker that waits, as for a core that others have, is given time; one that computes is not."""
    stand_in(
        "import time\n"
        "def same(prediction, truth):\n"
        "    if 'w' in prediction: time.sleep(0.8)\n"
        "    while 'e' in prediction: pass\n"
        "    return True\n"
    )
    found = grade_math_many([("w+1", "x+1"), ("e+1", "x+1")], timeout_s=0.3)
    assert found == [GradeResult(True), GradeResult(False, "timeout")]


def test_a_workers_memory_is_limited(stand_in):
    stand_in("def same(prediction, truth): return bool(bytearray(400 << 20))\n")
    pair = ("x+2", "x+1")
    assert grade_math_many([pair], memory_mb=256, timeout_s=20) == [GradeResult(False, "crashed")]
    assert grade_math_many([pair], memory_mb=1024, timeout_s=20) == [GradeResult(True)]


def test_what_a_worker_prints_is_no_reply(stand_in):
    stand_in("def same(prediction, truth):\n    print('{\"same\": true}', flush=True)\n    return False\n")
    assert grade_math_many([("x+2", "x+1"), ("x+3", "x+1")]) == [GradeResult(False)] * 2


def test_math_verify_has_a_time_limit_of_its_own(stand_in, monkeypatch, tmp_path):
    stand_in("def same(prediction, truth): return True\n")
    (tmp_path / "sleeps.py").write_text("import time\ndef same(prediction, truth): time.sleep(60)\n")
    monkeypatch.setattr(math_grader, "MATH_VERIFY", "sleeps")
    began = time.monotonic()
    pair = ("x+2", "x+1")
    assert grade_math_many([pair], math_verify=True, math_verify_timeout_s=0.5) == [GradeResult(True)]
    assert time.monotonic() - began < 20


def test_without_room_for_a_worker_nothing_is_learnt(monkeypatch):
    def refuse(*_, **__):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(math_workers.subprocess, "Popen", refuse)
    easy, hard = grade_math_many([("5", "5"), ("x+2", "2+x")])
    assert easy == GradeResult(True)
    assert hard.status == "error"
    assert "Resource temporarily unavailable" in hard.detail
    monkeypatch.setattr(math_grader, "_worker", Worker(512, OURS))
    with pytest.raises(UserError, match=r"math grading: expected a worker process, found .* unavailable"):
        grade_math("x+2", "2+x")


def test_a_worker_that_died_between_two_answers_is_replaced():
    worker = Worker(512, OURS)
    assert worker.compare(OURS, ("x+2", "2+x"), 10) == Reply(True)
    worker.process.kill()
    worker.process.wait()
    assert worker.compare(OURS, ("x+3", "3+x"), 10) == Reply(True)
    worker.stop()

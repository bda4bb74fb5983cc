"""Locks between processes."""

import subprocess
import sys

import pytest

from t3d.errors import DataError
from t3d.storage.locks import claim


class Owner:
    """Whoever claims."""


HOLDING = """
import sys
from pathlib import Path
from t3d.storage.locks import claim

class Owner:
    pass

owner = Owner()
print(claim(Path(sys.argv[1]), owner), flush=True)
sys.stdin.readline()
"""


def claimed_elsewhere(command):
    return subprocess.run(command, input="\n", capture_output=True, text=True, check=True, timeout=60).stdout


def test_a_claim_keeps_other_processes_out_until_its_own_ends(tmp_path):
    path, owner = tmp_path / ".lock", Owner()
    command = [sys.executable, "-c", HOLDING, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "True\n"
        assert not claim(path, owner)
        process.communicate("\n", timeout=60)
    assert claim(path, owner)
    with pytest.raises(DataError, match=r"\.lock: expected a file that can be written to, found No such file"):
        claim(tmp_path / "nowhere" / ".lock", owner)
    assert claim(path, Owner()), "a process may claim a file twice"
    assert claimed_elsewhere(command) == "False\n", "the second claim has ended, the first has not"
    del owner
    assert claimed_elsewhere(command) == "True\n"

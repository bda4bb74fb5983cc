"""Memory does not grow with the number of records, in stage 2 and in training: measured in processes of their own.

The full figure: T3D_TEST_RECORDS=200000 python -m pytest tests/training/test_flat_memory.py --log-cli-level=INFO
"""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

log = logging.getLogger(__name__)

MANY = int(os.environ.get("T3D_TEST_RECORDS", "20000"))
FEW = 2000
SCRIPT = """
import itertools, json, random, sys, threading, time
from pathlib import Path

from t3d.config import DatasetConfig, TrainingConfig
from t3d.storage.files import write_json_list
from t3d.data.preprocess import rename_answers
from t3d.sdar.checkpoint import load_tokenizer
from t3d.training.data import load_samples

folder, checkpoint, num_records = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])


def anonymous_mb():
    # Without the pages of mapped files, which the system takes back when it needs them.
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


class Peak:
    def __enter__(self):
        self.mb, self.running = anonymous_mb(), True
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self):
        while self.running:
            self.mb = max(self.mb, anonymous_mb())
            time.sleep(0.01)

    def __exit__(self, *_):
        self.running = False
        self.thread.join()


def record(number):
    ids = [(number + place) % 400 for place in range(64)]
    return {
        "question": f"What is {number}?", "prompt": "p" * 100, "prompt_ids": ids, "block_size": 4,
        "full_output": [f"{number}" * 20], "response_ids": [ids], "step_map": [list(range(1, 65))],
        "finish_reason": ["stop"], "num_forwards": [64], "num_steps": [64],
    }


tokenizer = load_tokenizer(checkpoint)
rollout, data = folder / "rollout.json", folder / "data.json"
write_json_list(rollout, map(record, range(num_records)))
peaks, seconds = {}, {}
started = time.perf_counter()
with Peak() as peak:
    rename_answers(rollout, data)
peaks["stage 2"], seconds["stage 2"] = peak.mb, time.perf_counter() - started
started = time.perf_counter()
with Peak() as peak:
    samples = load_samples([data], tokenizer, DatasetConfig(), TrainingConfig(), len(tokenizer), needs_step_map=True)
peaks["build"], seconds["build"] = peak.mb, time.perf_counter() - started
order = random.Random(0)
started = time.perf_counter()
with Peak() as peak:
    for _ in range(min(num_records, 20000)):
        samples[order.randrange(len(samples))]
peaks["read"], seconds["read"] = peak.mb, time.perf_counter() - started
assert len(samples) == num_records
json.dump([peaks, seconds], sys.stdout)
"""


def measure(folder: Path, checkpoint: Path, num_records: int) -> tuple[dict[str, float], dict[str, float]]:
    """Peak memory (MB) and time (s) of each stage."""
    folder.mkdir()
    command = [sys.executable, "-c", SCRIPT, str(folder), str(checkpoint), str(num_records)]
    environment = {**os.environ, "T3D_CACHE_ROOT": str(folder / "cache")}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    peaks, seconds = json.loads(ended.stdout)
    return peaks, seconds


@pytest.mark.slow
def test_ten_times_the_records_need_no_more_memory(checkpoint, tmp_path):
    few, _ = measure(tmp_path / "few", checkpoint, FEW)
    many, seconds = measure(tmp_path / "many", checkpoint, MANY)
    for stage, peak in many.items():
        seen = f"{few[stage]:.0f} MB at {FEW} records, {peak:.0f} MB at {MANY} ({seconds[stage]:.1f} s)"
        log.info("%s: %s", stage, seen)
        assert peak - few[stage] < 64, stage

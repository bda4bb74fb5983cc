import json

import pytest

from t3d.errors import DataError
from t3d.rollout import rollout, rollout_path
from t3d.rollout import run as run_module


class TestMerging:
    def test_a_kill_after_the_file_is_whole_leaves_nothing_behind(self, settings, interrupted):
        interrupted()
        shard = rollout_path(settings()).with_suffix(".partial-0.jsonl")
        before = shard.read_bytes()
        path = rollout(settings())
        shard.write_bytes(before)
        assert rollout(settings()) == path
        assert not shard.exists()
        interrupted("rollout.seed=1")
        assert rollout(settings()) == path
        assert shard.exists()  # another run's

    def test_what_a_kill_left_of_a_half_written_file_is_removed(self, settings):
        path = rollout_path(settings())
        path.parent.mkdir()
        (path.parent / f".{path.name}.0123abcd.tmp").write_text("[")
        rollout(settings())
        assert len(list(path.parent.iterdir())) == 3

    def test_a_missing_shard_is_noticed(self, settings, monkeypatch):
        decode = run_module._decode

        def elsewhere(*arguments):
            decode(*arguments)
            rollout_path(settings()).with_suffix(".partial-0.jsonl").unlink()

        monkeypatch.setattr(run_module, "_decode", elsewhere)
        with pytest.raises(DataError, match=r"expected every response in the shards .* found 10 of 10 missing"):
            rollout(settings())

    def test_seconds_are_summed_over_sessions(self, settings, interrupted):
        interrupted()
        path = rollout_path(settings())
        first = json.loads(path.with_suffix(".partial-0.jsonl").read_text().splitlines()[-1])["seconds"]
        rollout(settings())
        assert json.loads(path.with_suffix(".meta.json").read_text())["seconds"] > first > 0

import pytest

from t3d.config import RolloutConfig
from t3d.errors import ConfigError, DataError
from t3d.rollout.ranks import Ranks, join_ranks
from t3d.rollout.run import count_workers
from tests import launching

AGREEING = """
import sys
from t3d.errors import DataError, UserError
from t3d.rollout.ranks import join_ranks

ranks = join_ranks()
told = [ranks.on_first(lambda: ("from", ranks.rank)), ranks.least(7 - ranks.rank)]

def fail(rank):
    if ranks.rank == rank:
        raise DataError(f"file of {rank}", "more", "less")
    told.append("finished")

for action in (lambda: ranks.on_first(lambda: fail(0)), lambda: ranks.on_each(lambda: fail(1))):
    try:
        action()
    except UserError as error:
        told.append(f"{type(error).__name__} {error}")
ranks.on_each(lambda: told.append("together"))
sys.stdout.write(f"{ranks.rank} of {ranks.size}: {told}\\n")
"""


def test_a_process_alone_agrees_with_itself(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    ranks = join_ranks()
    assert ranks == Ranks(0, 1, 0)
    assert ranks.on_first(lambda: 3) == ranks.least(3) == 3
    seen = []
    ranks.on_each(lambda: seen.append(1))
    assert seen == [1]


@pytest.mark.slow
def test_processes_of_a_launch_agree_on_results_and_mistakes(tmp_path):
    script = tmp_path / "agree.py"
    script.write_text(AGREEING)
    ended = launching.launch(2, [str(script)])
    assert [rank.returncode for rank in ended] == [0, 0], [rank.stderr for rank in ended]
    first = "DataError file of 0: expected more, found less"
    second = "DataError file of 1: expected more, found less"
    assert sorted(line for rank in ended for line in rank.stdout.splitlines() if not line.startswith("[Gloo]")) == [
        f"0 of 2: {[('from', 0), 6, first, 'finished', second, 'together']}",
        f"1 of 2: {[('from', 0), 6, first, second, 'together']}",
    ]


@pytest.mark.parametrize(
    ("settings", "gpus", "expected"),
    [
        ({}, 0, 1),
        ({}, 4, 4),
        ({"device": "cpu"}, 4, 1),
        ({"device": "cuda:2"}, 4, 1),
        ({"num_workers": 3}, 0, 3),
        ({"num_workers": 3}, 4, 3),
    ],
)
def test_a_worker_per_gpu_unless_a_number_is_given(monkeypatch, settings, gpus, expected):
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    assert count_workers(RolloutConfig(**settings), Ranks()) == expected


def test_processes_of_a_launch_start_no_others():
    assert count_workers(RolloutConfig(num_workers=1), Ranks(1, 2)) == 1
    with pytest.raises(ConfigError, match=r"rollout\.num_workers: expected 0 or 1 in a launch of 2 processes, found 3"):
        count_workers(RolloutConfig(num_workers=3), Ranks(1, 2))


def test_a_model_is_divided_among_all_processes_of_the_launch_or_none():
    assert count_workers(RolloutConfig(tensor_parallel_size=2), Ranks(1, 2)) == 1
    for ranks in (Ranks(), Ranks(0, 4)):
        with pytest.raises(
            ConfigError, match=rf"rollout\.tensor_parallel_size: expected 1, or all .*: {ranks.size}, found 2"
        ):
            count_workers(RolloutConfig(tensor_parallel_size=2), ranks)


def test_a_mistake_on_the_only_process_is_raised_as_it_is():
    def fail() -> None:
        raise DataError("a", "b", "c")

    for meet in (Ranks().on_first, Ranks().on_each):
        with pytest.raises(DataError, match="a: expected b, found c"):
            meet(fail)

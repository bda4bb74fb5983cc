from collections.abc import Callable

import pytest

from t3d.rollout import rollout
from t3d.rollout.shard import Shard


def kill_at(number: int, monkeypatch) -> None:
    """Makes storing the response after `number` others fail, as a kill would."""
    add, added = Shard.add, []

    def failing(self, *arguments):
        if len(added) >= number:
            raise KeyboardInterrupt
        added.append(arguments)
        add(self, *arguments)

    monkeypatch.setattr(Shard, "add", failing)


@pytest.fixture
def interrupted(settings, monkeypatch) -> Callable[..., None]:
    """Runs a rollout that dies after four responses."""

    def run(*overrides: str) -> None:
        with monkeypatch.context() as patch:
            kill_at(4, patch)
            with pytest.raises(KeyboardInterrupt, match=r"the finished responses are kept in .*/temp_data, the same"):
                rollout(settings(*overrides))

    return run

"""What a running rollout tells: one bar over all its processes, and the responses that failed."""

import logging
from functools import partial

from tqdm import tqdm

from t3d.rollout.worker import Done

log = logging.getLogger(__name__)

_MAX_REPORTS = 20


class Progress:
    """A bar with responses, tokens per second and per forward, and the time left; warns of the first failures."""

    def __init__(self, total: int, finished: int, responses_per_item: int, hidden: bool = False) -> None:
        """Shows nothing yet.

        Args:
            total: responses to decode, those of earlier sessions included.
            finished: responses of earlier sessions.
            responses_per_item: tells a response's place within its problem.
            hidden: show no bar.
        """
        self.responses_per_item = responses_per_item
        self.tokens = self.forwards = self.failed = 0
        self.seconds = 0.0
        # Shown from the first response on: a mistake that is found while models load is one line alone, and the time
        # left is that of decoding.
        self.start = partial(tqdm, total=total, initial=finished, desc="rollout", unit="response", disable=hidden)
        self.bar: tqdm | None = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def add(self, done: Done) -> None:
        """Counts a response that is stored."""
        if self.bar is None:
            self.bar = self.start()
        self.tokens, self.forwards = self.tokens + done.tokens, self.forwards + done.forwards
        self.seconds = max(self.seconds, done.seconds)
        if done.error is not None:
            self._warn(done)
        speed, parallel = self.tokens / max(1e-9, self.seconds), self.tokens / max(1, self.forwards)
        self.bar.set_postfix(tok_s=f"{speed:.0f}", tok_forward=f"{parallel:.2f}", refresh=False)
        self.bar.update()

    def _warn(self, done: Done) -> None:
        self.failed += 1
        if self.failed <= _MAX_REPORTS:
            response = done.request.number % self.responses_per_item
            log.warning("failed: item %d, response %d: %s", done.request.item, response, done.error)
        if self.failed == _MAX_REPORTS:
            log.warning("further failures are counted, and stand in the rollout file")

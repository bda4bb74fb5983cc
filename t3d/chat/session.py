"""The turns of a conversation: what is asked, what is answered, and what it cost."""

import sys
import time
from collections.abc import Iterable
from contextlib import closing
from typing import Any, cast

from t3d.api import Answer, Model, Settings
from t3d.chat.terminal import printable
from t3d.errors import DataError
from t3d.prompts import Message

NEW = "/new"
"""What a user writes to begin a new conversation."""


class Session:
    """A conversation with a model; its answers go to the output, all else to the error output.

    Attributes:
        messages: the turns so far; an answer that was interrupted stands as far as it came.
        interactive: somebody types: what goes wrong in one turn does not end the conversation.
    """

    def __init__(self, model: Model, settings: Settings, system: str | None, interactive: bool) -> None:
        """Begins a conversation, perhaps with a `system`'s turn."""
        self.model, self.settings, self.interactive = model, settings, interactive
        self.opening: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        self.messages = list(self.opening)

    def run(self, lines: Iterable[str]) -> None:
        """Answers line after line; empty ones are skipped.

        Raises:
            UserError: a model or settings at fault, or, unless `interactive`, a turn that cannot be answered.
        """
        for line in lines:
            words = line.strip()
            if words == NEW:
                self.messages = list(self.opening)
            elif words:
                self._answer(words)

    def _answer(self, words: str) -> None:
        self.messages.append({"role": "user", "content": words})
        try:
            said = self._say()
        except DataError as error:
            if not self.interactive:
                raise
            self.messages.pop()
            sys.stderr.write(f"{printable(str(error))}\n({NEW} begins a new conversation)\n")
        else:
            self.messages.append({"role": "assistant", "content": said})

    def _say(self) -> str:
        """Writes the answer, block by block as they finish, and what it cost; Ctrl-C ends it where somebody types."""
        said, answer, started = "", None, time.perf_counter()
        blocks = cast(Any, self.model.stream(self.messages, **self.settings))
        told = "(stopped)"
        try:
            with closing(blocks):
                for block in blocks:
                    said, answer = said + block.text, block.answer
                    sys.stdout.write(printable(block.text))
                    sys.stdout.flush()
            assert answer is not None  # it comes with the last block
            told = cost(answer, time.perf_counter() - started)
        except KeyboardInterrupt:
            if not self.interactive:
                raise
        sys.stdout.write("\n")
        sys.stdout.flush()
        sys.stderr.write(f"{told}\n")
        return said


def cost(answer: Answer, seconds: float) -> str:
    """What an answer cost, in one line."""
    cut = ", cut at the limit" if answer.finish_reason == "length" else ""
    return (
        f"({len(answer.tokens)} tokens in {answer.num_forwards} forwards: {answer.tokens_per_forward:.2f} tokens per"
        f" forward, {len(answer.tokens) / seconds:.0f} tokens per second{cut})"
    )

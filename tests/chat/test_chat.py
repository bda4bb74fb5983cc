"""The terminal chat: turns from a script and from a terminal, and what a model must not do to the terminal."""

import io
import sys

import pytest

from t3d.api import Block
from t3d.chat import __main__ as command
from t3d.chat import session as session_module
from t3d.chat.session import Session
from t3d.chat.terminal import HINT, printable, typed
from t3d.errors import ConfigError, DataError, UserError

QUESTION = "A shop has 3 drawers of 6 caps and gets 5 more. How many caps does it have?"


def chat(monkeypatch, text: str, *arguments: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode("utf-8", "surrogateescape"))))
    command.main(["--device", "cpu", *arguments])


def test_the_built_in_teacher_answers_a_script(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    chat(monkeypatch, f"{QUESTION}\n\n/new\n{QUESTION}\n", "--steps", "2")
    out, err = capsys.readouterr()
    first, second = out.splitlines()
    assert first == second  # /new forgets
    assert r"\boxed{23}" in first
    assert err.count(" tokens per forward, ") == 2
    assert "(27 tokens in 15 forwards: 1.80 tokens per forward, " in err


def test_each_turn_sees_those_before_it(monkeypatch, checkpoint):
    asked = []
    stream = session_module.Model.stream

    def spy(self, messages, **settings):
        asked.append([dict(message) for message in messages])
        return stream(self, messages, **settings)

    monkeypatch.setattr(session_module.Model, "stream", spy)
    options = ["--model", str(checkpoint), "--max-tokens", "6", "--system", "Be brief."]
    chat(monkeypatch, "one\ntwo\n", *options)
    first, second = asked
    assert first == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "one"}]
    assert second[:2] == first
    assert [message["role"] for message in second[2:]] == ["assistant", "user"]
    assert second[3]["content"] == "two"


def test_escape_sequences_of_a_model_are_spelled_out():
    assert printable("\x1b[2J\x07\r\x9b1m\u202eevil\u2028") == r"\x1b[2J\x07\r\x9b1m\u202eevil\u2028"
    fine = "naïve\n\tcafé 家\u3000\N{NO-BREAK SPACE}👩\u200d💻"
    assert printable(fine) == fine


class Scripted:
    """A model that says what a test wants."""

    def __init__(self, *texts: str, stops: bool = False) -> None:
        self.texts, self.stops, self.asked = texts, stops, []

    def stream(self, messages, **settings):
        self.asked.append(list(messages))
        return self._blocks()

    def _blocks(self):
        for text in self.texts:
            yield Block(text, [1], [1])
        if self.stops:
            raise KeyboardInterrupt


def test_ctrl_c_ends_the_answer_and_keeps_what_was_said(capsys):
    session = Session(Scripted("3 groups", "\x1b[31m of", stops=True), {}, None, interactive=True)
    session.run(["Hello"])
    assert session.messages[-1] == {"role": "assistant", "content": "3 groups\x1b[31m of"}
    assert capsys.readouterr() == ("3 groups\\x1b[31m of\n", "(stopped)\n")


def test_and_ends_a_script():
    with pytest.raises(KeyboardInterrupt):
        Session(Scripted("3", stops=True), {}, None, interactive=False).run(["Hello", "again"])


class Refusing:
    def stream(self, messages, **settings):
        raise DataError("prompt 0", "a prompt that fits", "a long one")


def test_a_turn_that_does_not_fit_is_forgotten_in_a_terminal_and_ends_a_script(capsys):
    session = Session(Refusing(), {}, None, interactive=True)
    session.run(["Hello"])
    assert session.messages == []
    assert "prompt 0: expected a prompt that fits, found a long one\n(/new begins" in capsys.readouterr().err
    with pytest.raises(DataError):
        Session(Refusing(), {}, None, interactive=False).run(["Hello"])


def test_bytes_that_are_no_text_are_the_turns_mistake(monkeypatch, checkpoint):
    with pytest.raises(DataError, match="text without NUL and unpaired surrogates"):
        chat(monkeypatch, "caf\udce9\n", "--model", str(checkpoint), "--max-tokens", "6")


def test_a_terminal_is_read_until_ctrl_d_and_ctrl_c_forgets_the_line(monkeypatch, capsys):
    script = iter(["one", KeyboardInterrupt, "two", EOFError])

    def type_next(prompt):
        happens = next(script)
        if isinstance(happens, str):
            return happens
        raise happens

    monkeypatch.setattr("builtins.input", type_next)
    assert list(typed()) == ["one", "two"]
    assert capsys.readouterr().err == f"{HINT}\n{HINT}\n"


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        ([], {"block_size": 4, "max_new_tokens": 256, "temperature": 0.0}),
        (["--block-size", "8", "--steps", "2", "--temperature", "0.5"], {"block_size": 8, "denoising_steps": 2}),
        (["--strategy", "low_confidence_dynamic", "--threshold", "0.7"], {"dynamic_threshold": 0.7}),
        (["--strategy", "entropy_bounded", "--threshold", "0.2", "--seed", "3"], {"eb_threshold": 0.2, "seed": 3}),
    ],
)
def test_options_reach_the_decoder(monkeypatch, checkpoint, arguments, settings):
    seen = []
    monkeypatch.setattr(command.Session, "run", lambda session, lines: seen.append(session.settings))
    chat(monkeypatch, "", "--model", str(checkpoint), *arguments)
    assert settings.items() <= seen[0].items()


def test_mistakes_are_told(monkeypatch, checkpoint):
    with pytest.raises(ConfigError, match="--threshold: expected --strategy low_confidence_dynamic or entropy_bounded"):
        chat(monkeypatch, "", "--model", str(checkpoint), "--threshold", "0.5")
    with pytest.raises(ConfigError, match=r"decoding\.denoising_steps: expected 1 to block_size = 4, found 9"):
        chat(monkeypatch, "", "--model", str(checkpoint), "--steps", "9")  # before anything is asked
    with pytest.raises(UserError, match="invalid choice: 'fastest'"):
        chat(monkeypatch, "", "--strategy", "fastest")

"""The one prompt builder: rollout, training and evaluation ask a model the same thing, byte for byte."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from jinja2 import TemplateError

from t3d.errors import CheckpointError, ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DATA_TYPES = ("math", "code", "option")
TEST_METHODS = ("function", "stdio")
PROMPT_STYLES = ("plain", "release")
"""How the user's turn ends: "plain", with the instruction's last character, or as in the authors' release, whose
instructions for code and options (math's does not) have a space behind them, in front of the end of the turn."""

_THOUGHT = ("<think>", "</think>")
_UNUSABLE = re.compile("[\0\ud800-\udfff]")
_PROBLEM_HEADING = "This is the problem:\n"
_MATH = "\nPlease reason step by step, and put your final answer within \\boxed{}."
_FUNCTION = (
    "\nPlace your code within a single Python code block ```python ```. Do not include more than one code block."
)
_STDIO = (
    "\nYou should put your code in ```python ```. "
    "Use input() to read input and print() to produce output in your script."
)
_OPTION = (
    "\nYou need to think step by step and put the final option (A, B, C, or D only-no other character) in \\boxed{}."
)
PROBLEM = "{problem}"
WORDINGS: dict[str, str] = {
    "math": PROBLEM + _MATH,
    "option": _PROBLEM_HEADING + PROBLEM + _OPTION,
    "function": _PROBLEM_HEADING + PROBLEM + _FUNCTION,
    "stdio": _PROBLEM_HEADING + PROBLEM + _STDIO,
}
"""The user's turn by kind of problem; code has one for each of `TEST_METHODS`."""


def check_prompts(key: str, prompts: Mapping[str, str]) -> None:
    """Checks wordings that take the place of `WORDINGS`.

    Args:
        key: of the configuration, for the error.
        prompts: some kinds of `WORDINGS`, each with its text.

    Raises:
        ConfigError: another kind, or a text without `PROBLEM` or with more than one.
    """
    for kind, wording in prompts.items():
        if kind not in WORDINGS:
            raise ConfigError(f"{key}.{kind}", f"a wording for {', '.join(WORDINGS)}", "another kind")
        if wording.count(PROBLEM) != 1 or _UNUSABLE.search(wording):
            raise ConfigError(f"{key}.{kind}", f"a text with {PROBLEM} once", repr(wording))


def prompts_of(data_type: str, prompts: Mapping[str, str]) -> dict[str, str]:
    """Those of `prompts` that problems of the kind `data_type` use."""
    kinds = TEST_METHODS if data_type == "code" else (data_type,)
    return {kind: prompts[kind] for kind in kinds if kind in prompts}


def is_worded(record: Mapping[str, Any], data_type: str, prompts: Mapping[str, str]) -> bool:
    """Whether the `prompt` of a rollout's record puts its problem as `user_message` does.

    True also where the record does not hold the problem beside it.
    """
    try:
        return user_message(record, data_type, prompts=prompts) in record["prompt"]
    except DataError:
        return True


def check_text(value: object, where: str) -> str:
    """Returns `value` if a tokenizer can encode it and a process can be given it.

    Args:
        value: what a data file holds.
        where: file, record and field, for the error.

    Raises:
        DataError: `value` is no string, or holds a NUL or an unpaired surrogate.
    """
    if not isinstance(value, str):
        raise DataError(where, "a string", _describe(value))
    if unusable := _UNUSABLE.search(value):
        found = f"{unusable.group()!r} at character {unusable.start()}"
        raise DataError(where, "text without NUL and unpaired surrogates", found)
    return value


def user_message(
    item: Mapping[str, Any], data_type: str, style: str = "plain", prompts: Mapping[str, str] | None = None
) -> str:
    r"""Words the user's turn for one dataset item; the problem itself is never altered.

    Args:
        item: a dataset record, with `question` and, for code, `test_method` ("function" or "stdio").
        data_type: "math", "code" or "option".
        style: one of `PROMPT_STYLES`; only the own wordings have two.
        prompts: wordings that take the place of `WORDINGS`, by kind; see `check_prompts`.

    Returns:
        The problem with its instruction, such as "1+1?\nPlease reason step by step, ...".

    Raises:
        ConfigError: an unknown `data_type` or `style`.
        DataError: a missing or unusable `question`, or an unknown `test_method`.
    """
    if data_type not in DATA_TYPES:
        raise ConfigError("data_type", " or ".join(DATA_TYPES), repr(data_type))
    if style not in PROMPT_STYLES:
        raise ConfigError("prompt_style", " or ".join(PROMPT_STYLES), repr(style))
    wording = data_type
    if data_type == "code":
        wording = item.get("test_method", "")
        if wording not in TEST_METHODS:
            raise DataError("field test_method", " or ".join(TEST_METHODS), _describe(wording))
    problem, given = check_text(item.get("question"), "field question"), (prompts or {}).get(wording)
    before, after = (given or WORDINGS[wording]).split(PROBLEM)
    end = " " if style == "release" and data_type != "math" and given is None else ""
    return f"{before}{problem}{after}{end}"


def build_prompt(
    tokenizer: "PreTrainedTokenizerBase",
    item: dict[str, Any],
    data_type: str,
    start_with_think: bool = False,
    style: str = "plain",
    prompts: Mapping[str, str] | None = None,
) -> tuple[str, list[int]]:
    r"""Renders the prompt of one dataset item through the tokenizer's own chat template.

    The answer's opening follows the template's generation prompt: the `prefix` of a code function item, as it
    stands in the file, or else "<think>\n" if `start_with_think`. (An answer that its prefix has begun cannot
    begin again with a thought, so such items take no "<think>".)

    Data stays data. Nothing formats or templates it, and where a problem or prefix spells a token of the
    tokenizer's added vocabulary ("<|im_end|>", "<|MASK|>", "<think>"), the text is kept but encoded as the
    ordinary characters that it is, so that no problem can end its own turn or plant a mask.

    Departs from the release, which renders data inside a template (a prefix lost one trailing newline there)
    and trains on prompts without the instruction that its rollouts had.

    Args:
        tokenizer: a tokenizer with a chat template.
        item: a dataset record, see `user_message`.
        data_type: "math", "code" or "option".
        start_with_think: whether the answer opens with "<think>".
        style: one of `PROMPT_STYLES`.
        prompts: see `user_message`; a token that a wording spells is ordinary text too.

    Returns:
        The prompt's text and its token ids; the ids decode to the text (up to the tokenizer's own
        normalisation, NFC for SDAR's).

    Raises:
        CheckpointError: the tokenizer has no chat template, one that does not work, or one that alters the user's
            message.
        ConfigError: an unknown `data_type` or `style`.
        DataError: an unusable `question`, `test_method` or `prefix`.
    """
    message = user_message(item, data_type, style, prompts)
    chat = render(tokenizer, [{"role": "user", "content": message}])
    start = chat.find(message)
    if start < 0:
        raise CheckpointError(
            f"chat template of tokenizer {tokenizer.name_or_path}",
            "the user's message reproduced character by character",
            "a template that alters it",
        )
    prefix = _answer_prefix(item, data_type)
    opening = "<think>\n" if start_with_think and not prefix else ""
    text = chat + prefix + opening
    data_spans = [(start, start + len(message)), (len(chat), len(chat) + len(prefix))]
    return text, _encode(tokenizer, text, data_spans)


def render(tokenizer: "PreTrainedTokenizerBase", turns: Sequence[Mapping[str, str]], opened: bool = True) -> str:
    """A conversation's text, by the tokenizer's own chat template.

    Args:
        tokenizer: of the model.
        turns: `Message`s.
        opened: the model's turn begins behind them; else the last one goes on.

    Raises:
        CheckpointError: the tokenizer has no chat template, or one that refuses these turns.
    """
    where = f"tokenizer {tokenizer.name_or_path}"
    if not tokenizer.chat_template:
        raise CheckpointError(where, "a chat template", "none")
    told = [dict(turn) for turn in turns]
    try:
        chat = tokenizer.apply_chat_template(
            told, tokenize=False, add_generation_prompt=opened, continue_final_message=not opened
        )
    except TemplateError as error:
        roles = ", ".join(turn.get("role", "none") for turn in turns)
        raise CheckpointError(f"chat template of {where}", f"one that renders turns of {roles}", error) from error
    return str(chat)


class Message(TypedDict):
    """One turn of a conversation: who speaks ("system", "user" or "assistant"), and what is said."""

    role: str
    content: str


ROLES = ("system", "user", "assistant")


def chat_prompt(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], where: str) -> tuple[str, list[int]]:
    """Renders a conversation, which the model is to continue, through the tokenizer's own chat template.

    For one user's turn it is what `build_prompt` gives.  Here too what is said stays data, earlier answers included:
    no spelled token ends a turn or plants a mask.  A thought that an earlier answer began with is left out, as
    reasoning models' own templates do.

    Args:
        tokenizer: a tokenizer with a chat template.
        messages: the turns; the last one is the user's.
        where: names the conversation, for the errors.

    Returns:
        The prompt's text and its token ids.

    Raises:
        CheckpointError: the tokenizer has no chat template, or one that refuses, drops or repeats a turn.
        DataError: no turn, an unknown role, unusable text, or a last turn that is not the user's.
    """
    _check_messages(messages, where)
    said = [_without_thought(message) for message in messages]
    # The template is filled with marks, which say where each turn's words go, whatever the words are.
    marks = [f"\ue000{number}\ue001" for number in range(len(said))]
    marked = [{"role": message["role"], "content": mark} for message, mark in zip(messages, marks, strict=True)]
    rest = render(tokenizer, marked)
    text, spans = "", []
    for mark, content in zip(marks, said, strict=True):
        if rest.count(mark) != 1:
            template = f"chat template of tokenizer {tokenizer.name_or_path}"
            raise CheckpointError(template, "every turn once, in order", "one that drops, repeats or moves a turn")
        before, rest = rest.split(mark)
        text += before
        spans.append((len(text), len(text) + len(content)))
        text += content
    text += rest
    return text, _encode(tokenizer, text, spans)


def reworded(question: str, wording: str | None) -> str:
    """A question as a benchmark puts it to a model.

    Args:
        question: what is asked.
        wording: one of `WORDINGS` by name, or a text with `PROBLEM` once; None: the question as it is.

    Raises:
        ConfigError: another wording.
    """
    if wording is None:
        return question
    text = WORDINGS.get(wording, wording)
    if text.count(PROBLEM) != 1:
        raise ConfigError("wording", f"one of {', '.join(WORDINGS)}, or a text with {PROBLEM} once", repr(wording))
    return text.replace(PROBLEM, question)


def encode_answer(tokenizer: "PreTrainedTokenizerBase", answer: str) -> list[int]:
    """Token ids of an answer that people wrote; the end of its turn is the caller's.

    As in questions, a token of the added vocabulary that it spells is ordinary text: no answer can end its turn
    early, or teach a model to write masks.  A thought's marks alone stay tokens, as models write them.
    """
    return _encode(tokenizer, answer, [(0, len(answer))], kept=_THOUGHT)


def _check_messages(messages: Sequence[Message], where: str) -> None:
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or message.get("role") not in ROLES:
            expected = f"an object with content and a role of {', '.join(ROLES)}"
            raise DataError(f"{where}, message {number}", expected, _describe(message))
        check_text(message.get("content"), f"{where}, message {number}, content")
    if not messages or messages[-1]["role"] != "user":
        raise DataError(where, "a conversation that ends with the user's turn", "another end" if messages else "none")


def _without_thought(message: Message) -> str:
    _, marked, answer = message["content"].rpartition(_THOUGHT[1])
    return answer.lstrip("\n") if marked and message["role"] == "assistant" else message["content"]


def _answer_prefix(item: dict[str, Any], data_type: str) -> str:
    if data_type == "code" and item["test_method"] == "function" and item.get("prefix") is not None:
        return check_text(item["prefix"], "field prefix")
    return ""


def _encode(
    tokenizer: "PreTrainedTokenizerBase", text: str, data_spans: list[tuple[int, int]], kept: tuple[str, ...] = ()
) -> list[int]:
    """Encodes `text`, cutting every added token but `kept` spelled inside a data span after its first character."""
    # A one-character token cannot be cut; it is a letter of that tokenizer's alphabet, not markup.
    spellings = [re.escape(token) for token in tokenizer.get_added_vocab() if len(token) > 1 and token not in kept]
    cuts = [0]
    if spellings:
        # The lookahead also finds spellings that overlap an earlier one.
        spelled = re.compile(f"(?={'|'.join(spellings)})")
        cuts += [m.start() + 1 for start, end in data_spans for m in spelled.finditer(text, start, end)]
    pieces = [text[cut:following] for cut, following in zip(cuts, [*cuts[1:], len(text)], strict=True)]
    return [
        token_id
        for piece in pieces
        for token_id in tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"]
    ]


def _describe(value: object) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {value!r}"[:80]

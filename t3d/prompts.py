"""The one prompt builder: rollout, training and evaluation ask a model the same thing, byte for byte."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

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
_WORDING: dict[str, Callable[[str], str]] = {
    "math": lambda problem: problem + _MATH,
    "option": lambda problem: _PROBLEM_HEADING + problem + _OPTION,
    "function": lambda problem: _PROBLEM_HEADING + problem + _FUNCTION,
    "stdio": lambda problem: _PROBLEM_HEADING + problem + _STDIO,
}


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


def user_message(item: dict[str, Any], data_type: str, style: str = "plain") -> str:
    r"""Words the user's turn for one dataset item; the problem itself is never altered.

    Args:
        item: a dataset record, with `question` and, for code, `test_method` ("function" or "stdio").
        data_type: "math", "code" or "option".
        style: one of `PROMPT_STYLES`.

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
    message = _WORDING[wording](check_text(item.get("question"), "field question"))
    return f"{message} " if style == "release" and data_type != "math" else message


def build_prompt(
    tokenizer: "PreTrainedTokenizerBase",
    item: dict[str, Any],
    data_type: str,
    start_with_think: bool = False,
    style: str = "plain",
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

    Returns:
        The prompt's text and its token ids; the ids decode to the text (up to the tokenizer's own
        normalisation, NFC for SDAR's).

    Raises:
        CheckpointError: the tokenizer has no chat template, or one that alters the user's message.
        ConfigError: an unknown `data_type` or `style`.
        DataError: an unusable `question`, `test_method` or `prefix`.
    """
    message = user_message(item, data_type, style)
    if not tokenizer.chat_template:
        raise CheckpointError(f"tokenizer {tokenizer.name_or_path}", "a chat template", "none")
    turns = [{"role": "user", "content": message}]
    chat = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
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


def encode_answer(tokenizer: "PreTrainedTokenizerBase", answer: str) -> list[int]:
    """Token ids of an answer that people wrote; the end of its turn is the caller's.

    As in questions, a token of the added vocabulary that it spells is ordinary text: no answer can end its turn
    early, or teach a model to write masks.  A thought's marks alone stay tokens, as models write them.
    """
    return _encode(tokenizer, answer, [(0, len(answer))], kept=_THOUGHT)


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

"""What other engines return for one prompt, each in its own form, brought to one shape.

None of the engines documents its form.  The functions name the code that they were read from, and what that code
leaves open.  All of them count blocks from position 0 of prompt + response, as this project does.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from t3d.errors import DataError
from t3d.storage.files import json_kind

JETENGINE_STEPS = ("trajectory", "first_unmask_steps", "first_unmask_times")
"""What JetEngine and its forks call the steps."""

LIMIT = 2**31
"""Of token ids and steps: more than any vocabulary has, and what every tokenizer takes."""


@dataclass(frozen=True)
class EngineOutput:
    """One response as an engine gave it; what it does not tell is None.

    Attributes:
        response_ids: the generated tokens, perhaps with some behind the stop token.
        steps: for each of them the step that revealed it, counted over the response or anew in each block.
        prompt_ids: the prompt, where the output carries it.
        num_prompt_tokens: its length.
        text: the response as text.
        stopped: whether the engine says that a stop token ended it.
        logprobs: of each token when it was revealed, in nats, under the distribution that the engine drew from.
        entropies: of that distribution, in nats.
        restarts: steps may be counted anew in each block, see `recount`.
    """

    response_ids: list[int]
    steps: list[int]
    prompt_ids: list[int] | None = None
    num_prompt_tokens: int | None = None
    text: str | None = None
    stopped: bool | None = None
    logprobs: list[float] | None = None
    entropies: list[float] | None = None
    restarts: bool = False


def jetengine(record: dict[str, Any], where: str) -> EngineOutput:
    """One output of `LLM.generate` or `LLM.generate_streaming`.

    Read from github.com/Labman42/JetEngine: jetengine/engine/llm_engine.py, sequence.py and scheduler.py (commit
    1ededc3): `token_ids` is the whole sequence, prompt included; `trajectory`, `logprobs` and `entropies` begin
    behind the prompt.  Steps count over the response, from 1.  The last block stands whole, with what was generated
    behind the stop token.  Log-probabilities and entropies are those at the sampling temperature, unfiltered.

    Forks that return the order earlier (github.com/Gen-Verse/dLLM-RL and github.com/Tyrion58/T3D,
    sample/jetengine_ext/engine/llm_engine.py) give `first_unmask_times`, the sequence's `first_unmask_steps`, and
    `token_ids` without the prompt.  The two are told apart by their lengths.  Tokens that are still masked when a
    block runs out of steps have step 0 there: such a response is refused.

    Uncertain: with `low_confidence_static` and fewer masks than tokens to reveal, older versions overwrite the
    prompt's tail.  Where the prompt's tokens stand beside the output too, the two are compared.
    """
    name = next((name for name in JETENGINE_STEPS if record.get(name) is not None), JETENGINE_STEPS[0])
    steps, ids = integers(record, name, where), integers(record, "token_ids", where)
    surplus = len(ids) - len(steps)
    if surplus < 0:
        found = f"{len(steps)} steps for {len(ids)} tokens"
        raise DataError(f"{where}, field {name}", "at most one step per token of token_ids", found)
    return EngineOutput(
        response_ids=ids[surplus:],
        steps=steps,
        prompt_ids=ids[:surplus] or None,
        text=None if surplus else _text(record, where),
        logprobs=_figures(record, "logprobs", len(steps), where),
        entropies=_figures(record, "entropies", len(steps), where),
    )


def sglang(record: dict[str, Any], where: str) -> EngineOutput:
    """One output of `Engine.generate(..., return_step_maps=True)`, or of the server's /generate.

    Read from pull request 27943 of github.com/sgl-project/sglang (open in 2026-06: python/sglang/srt/dllm/algorithm/
    base.py, its tests and its engine check): `output_ids` (or `token_ids`), and `meta_info["step_maps"]`, one step
    per output token, from 1, counted ANEW in each block.  Pull request 17297 (closed) counts over the response.
    Both are taken; `recount` tells them apart.

    Uncertain: what `meta_info["output_token_logprobs"]` (logprob, token, text) holds for diffusion models; it is
    taken where there is one entry per token and the tokens agree.
    """
    meta = record.get("meta_info")
    if not isinstance(meta, dict):
        raise DataError(f"{where}, field meta_info", "an object with step_maps", json_kind(meta))
    name = "token_ids" if "output_ids" not in record and "token_ids" in record else "output_ids"
    ids, steps = integers(record, name, where), integers(meta, "step_maps", f"{where}, field meta_info")
    reason = meta.get("finish_reason")
    kind = reason.get("type") if isinstance(reason, dict) else reason
    return EngineOutput(
        response_ids=ids,
        steps=steps,
        num_prompt_tokens=_count(meta, "prompt_tokens", f"{where}, field meta_info"),
        text=_text(record, where),
        stopped=_stopped(kind, f"{where}, field meta_info, field finish_reason"),
        logprobs=_sglang_logprobs(meta.get("output_token_logprobs"), ids),
        restarts=True,
    )


def lmdeploy(record: dict[str, Any], where: str) -> EngineOutput:
    """One `lmdeploy.Response` of a pipeline, as `dataclasses.asdict` writes it.

    Read from pull request 4057 of github.com/InternLM/lmdeploy (open in 2025-10: lmdeploy/messages.py,
    lmdeploy/pytorch/strategies/dllm/sequence.py): `token_ids`, and `step_map` of the same length, from 1, counted
    over the response; a step that reveals nothing is not counted.

    Uncertain: by default lmdeploy takes the stop token off `token_ids`.  Such a response is taken for one that was
    cut, with a warning; `GenerationConfig(include_stop_str_in_output=True)` keeps the token.
    """
    ids, steps = integers(record, "token_ids", where), integers(record, "step_map", where)
    return EngineOutput(
        response_ids=ids,
        steps=steps,
        num_prompt_tokens=_count(record, "input_token_len", where),
        text=_text(record, where),
        stopped=_stopped(record.get("finish_reason"), f"{where}, field finish_reason"),
        logprobs=_lmdeploy_logprobs(record.get("logprobs"), ids),
    )


ENGINES: dict[str, Callable[[dict[str, Any], str], EngineOutput]] = {
    "jetengine": jetengine,
    "sglang": sglang,
    "lmdeploy": lmdeploy,
}

OWN_FIELDS = {
    "jetengine": (
        "text",
        "token_ids",
        "trajectory",
        "first_unmask_steps",
        "first_unmask_times",
        "logprobs",
        "entropies",
    ),
    "sglang": ("text", "output_ids", "token_ids", "meta_info", "index"),
    "lmdeploy": (
        *("text", "generate_token_len", "input_token_len", "finish_reason", "token_ids", "step_map", "logprobs"),
        *("logits", "last_hidden_state", "index", "routed_experts"),
    ),
}
"""Fields of an engine's own; all others are the user's, and stay in the record."""


def recount(steps: list[int], block_size: int, prompt_length: int, where: str) -> list[int]:
    """Steps counted over the whole response, of a map that counts so or anew in each block.

    A map that increases from block to block is returned as it is.  (Two blocks, the last cut: [1, 1, 1, 1 | 2] is
    either.  The order is the same, one step's number is not.)

    Args:
        steps: one per response token, from 1; at least one.
        block_size: positions per block, counted from position 0 of the prompt.
        prompt_length: tokens in front of the response.
        where: record, for the error.

    Raises:
        DataError: blocks that neither go on counting nor begin again at 1.
    """
    offset = prompt_length % block_size
    starts = range(-offset, len(steps), block_size)
    blocks = [steps[max(start, 0) : start + block_size] for start in starts]
    if all(min(block) > max(before) for before, block in pairwise(blocks)):
        return steps
    counted: list[int] = []
    for number, block in enumerate(blocks):
        # Of the last block the token of step 1 may be cut off.
        if (number < len(blocks) - 1 and min(block) != 1) or max(block) > block_size:
            place = max(starts[number], 0)
            expected = "steps that go on counting from block to block, or that begin at 1 in each"
            raise DataError(where, expected, f"steps {min(block)} to {max(block)} in the block at token {place}")
        done = max(counted, default=0)
        counted += [done + step for step in block]
    return counted


def integers(record: dict[str, Any], name: str, where: str) -> list[int]:
    """A field that holds token ids or steps.

    Raises:
        DataError: it holds none.
    """
    values = record.get(name)
    if not isinstance(values, list):
        found = json_kind(values) if name in record else "nothing"
        raise DataError(f"{where}, field {name}", "a list of whole numbers", found)
    for position, value in enumerate(values):
        if type(value) is not int or not 0 <= value < LIMIT:  # a bool is an int to isinstance
            found = f"{value!r} at position {position}"
            raise DataError(f"{where}, field {name}", f"whole numbers from 0, below {LIMIT}", found)
    return values


def _figures(record: dict[str, Any], name: str, length: int, where: str) -> list[float] | None:
    values = record.get(name)
    numbers = _numbers(values, length) if isinstance(values, list) else None
    if values is not None and numbers is None:
        found = f"{len(values)} entries" if isinstance(values, list) else json_kind(values)
        raise DataError(f"{where}, field {name}", f"{length} numbers, one per step", found)
    return numbers


def _count(record: dict[str, Any], name: str, where: str) -> int | None:
    value = record.get(name)
    if value is not None and type(value) is not int:
        raise DataError(f"{where}, field {name}", "a whole number", json_kind(value))
    return value


def _text(record: dict[str, Any], where: str) -> str | None:
    value = record.get("text")
    if value is not None and not isinstance(value, str):
        raise DataError(f"{where}, field text", "a string", json_kind(value))
    return value


def _stopped(reason: Any, where: str) -> bool | None:
    if reason not in (None, "stop", "length"):
        raise DataError(where, "stop or length: the response was generated to its end", repr(reason))
    return None if reason is None else reason == "stop"


def _sglang_logprobs(entries: Any, ids: list[int]) -> list[float] | None:
    """Of (logprob, token, text) per position, the first ones."""
    if not isinstance(entries, list) or [entry[1] for entry in entries if _is_pair(entry)] != ids:
        return None
    return _numbers([entry[0] for entry in entries if _is_pair(entry)], len(ids))


def _is_pair(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) >= 2


def _lmdeploy_logprobs(entries: Any, ids: list[int]) -> list[float] | None:
    """Of {token: logprob} per position, the entries of the tokens themselves."""
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        return None
    return _numbers([entry.get(str(token)) for entry, token in zip(entries, ids, strict=False)], len(ids))


def _numbers(values: list[Any], length: int) -> list[float] | None:
    """The values as numbers, if they are that, and as many."""
    fits = len(values) == length and all(type(value) in (int, float) for value in values)
    return [float(value) for value in values] if fits else None

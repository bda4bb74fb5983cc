"""The record that every stage shares: a decoded response and the step that revealed each token."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t3d.errors import DataError
from t3d.prompts import check_text
from t3d.storage.files import iter_json_list, json_kind, read_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FINISH_REASONS = ("stop", "length")
UNFINISHED = "unfinished"
"""The `finish_reason` of a response that is still being decoded; no file holds one."""
UNDECODED = "\N{REPLACEMENT CHARACTER}"
"""What `decoded` shows for bytes that are no whole character (yet), as those of a token that holds a part of one."""
# Lists of a rollout record that hold one entry per response; `full_output` is named `answer` after stage 2.
RESPONSE_FIELDS = (
    "full_output",
    "answer",
    "step_map",
    "response_ids",
    "finish_reason",
    "num_forwards",
    "num_draft_forwards",
    "num_steps",
    "extracted_output",
    "grading",
    "grading_detail",
    "math_verify",
    "shared_interpreter",
    "response_length",
    "correctness",
    "execution_result",
    "error",
    "logprob",
    "entropy",
)
# Tried where a file does not say which block size decoded it.
_LIKELY_BLOCK_SIZES = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Trajectory:
    """One decoded response with its denoising order.

    Attributes:
        prompt_ids: the prompt, as token ids.
        response_ids: the generated token ids, ending with the stop token if there was one.
        step_map: for each response token the 1-based denoising step, counted over the whole response, that
            revealed it; same length as `response_ids`.
        finish_reason: "stop" (a stop token was generated), "length" (the token limit was reached) or "error";
            `UNFINISHED` of the whole blocks so far.
        num_forwards: model forwards this sequence took part in, prefill included.
        num_draft_forwards: those of them that a drafting network made, see `t3d.decoding.speculative`.
        num_steps: denoising steps spent on this sequence.
        error: why decoding failed; `response_ids` and `step_map` are empty then.
        logprobs: if recorded, each response token's log-probability at its reveal, in nats.
        entropies: if recorded, the entropy of each response token's position at its reveal, in nats.
    """

    prompt_ids: list[int]
    response_ids: list[int]
    step_map: list[int]
    finish_reason: str
    num_forwards: int
    num_steps: int
    error: str | None = None
    logprobs: list[float] | None = None
    entropies: list[float] | None = None
    num_draft_forwards: int = 0


def validate_trajectory(trajectory: Trajectory, where: str, block_size: int | None = None) -> None:
    """Checks that a trajectory is one that the decoder can have produced.

    Args:
        trajectory: what to check.
        where: file, record and response, for the error.
        block_size: tokens per block of the decoding; None if unknown, see `check_step_map`.

    Raises:
        DataError: ids that are no token ids, an empty response, a step map of another length or out of order,
            an unknown finish reason, or counts that contradict the step map.
    """
    for field, ids in (("prompt_ids", trajectory.prompt_ids), ("response_ids", trajectory.response_ids)):
        _check_ints(ids, 0, f"{where}, field {field}")
    check_step_map(trajectory.step_map, where, block_size, len(trajectory.prompt_ids))
    if len(trajectory.response_ids) != len(trajectory.step_map):
        found = f"{len(trajectory.step_map)} steps for {len(trajectory.response_ids)} tokens"
        raise DataError(f"{where}, field step_map", "one step per token of response_ids", found)
    if trajectory.finish_reason not in FINISH_REASONS:
        found = repr(trajectory.finish_reason)
        raise DataError(f"{where}, field finish_reason", " or ".join(FINISH_REASONS), found)
    _check_int(trajectory.num_forwards, 0, f"{where}, field num_forwards")
    _check_int(trajectory.num_steps, 0, f"{where}, field num_steps")
    if trajectory.num_steps < max(trajectory.step_map):
        found = f"{trajectory.num_steps}, with step {max(trajectory.step_map)} in step_map"
        raise DataError(f"{where}, field num_steps", "no fewer steps than the last one of step_map", found)


def check_step_map(step_map: Any, where: str, block_size: int | None = None, prompt_length: int | None = None) -> None:
    """Checks that the steps are positive and that every block was finished before the next was begun.

    Blocks count from position 0 of prompt + response, so the prompt's tail shares the first block. Where the
    block size is unknown, the map passes if it is in order for a power of two up to 32, and where the
    prompt's length is unknown, for any alignment: maps within one block of 32 always pass then.

    Args:
        step_map: for each response token the denoising step that revealed it.
        where: file, record and response, for the error.
        block_size: tokens per block; None if unknown.
        prompt_length: tokens in front of the response; None if unknown.

    Raises:
        DataError: not a non-empty list of whole numbers of at least 1, or out of order.
    """
    where = f"{where}, field step_map"
    _check_ints(step_map, 1, where)
    if not step_map:
        raise DataError(where, "at least one token", "an empty response")
    sizes = _LIKELY_BLOCK_SIZES if block_size is None else (block_size,)
    late = 0
    for size in sizes:
        for offset in range(size) if prompt_length is None else (prompt_length % size,):
            disorder = _first_disorder(step_map, size, offset)
            if disorder is None:
                return
            late = max(late, disorder)
    blocks = "1 to 32" if block_size is None else block_size
    found = f"block size {blocks}, and a step at or after token {late} that is not above those before its block"
    raise DataError(where, "steps that increase from block to block", found)


def read_rollouts(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the records of a rollout file with their indices (from 0), one in memory at a time.

    Reads files of this project and of the release, before or after stage 2.

    Raises:
        DataError: no JSON list, or a record that `check_rollout` refuses; raised when reached.
    """
    for index, record in enumerate(iter_json_list(path)):
        yield index, check_rollout(record, f"{path}, record {index}")


def check_rollout(record: Any, where: str) -> dict[str, Any]:
    """Returns `record` if it has a rollout's shape; its single responses are left to `record_trajectories`.

    Raises:
        DataError: no object; no `prompt`; no texts under `full_output` or `answer`; no `step_map`; a list per
            response with another number of entries; `response_ids` without the fields that this project
            writes beside it; `prompt_ids` that are no token ids; or a `block_size` below 1.
    """
    if not isinstance(record, dict):
        raise DataError(where, "an object", json_kind(record))
    if not isinstance(record.get("prompt"), str):
        raise DataError(f"{where}, field prompt", "a string", _kind_of(record, "prompt"))
    if "prompt_ids" in record:
        _check_ints(record["prompt_ids"], 0, f"{where}, field prompt_ids")
    if "block_size" in record:
        _check_int(record["block_size"], 1, f"{where}, field block_size")
    _check_response_lists(record, where)
    return record


def response_fields(record: dict[str, Any]) -> list[str]:
    """Names the fields of a rollout record that hold one entry per response."""
    return [field for field in RESPONSE_FIELDS if isinstance(record.get(field), list)]


def record_trajectories(
    record: dict[str, Any],
    where: str,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    without: Collection[int] = (),
) -> list[Trajectory]:
    """Returns one checked trajectory per response of a rollout record.

    Stored token ids are used as they are. Texts without ids (the release's files) are tokenised again, and
    accepted only if that gives exactly as many tokens as the step map has; the release trims or pads the map
    instead, which gives tokens the steps of others. Such files record neither how a response ended nor its
    forwards: it is taken to have stopped if its last token is a special one, with 0 forwards.

    Args:
        record: one record of `read_rollouts`.
        where: file and record, for the errors.
        tokenizer: needed for records without ids.
        without: places of responses to leave out, such as those of `failures`.

    Raises:
        DataError: an invalid response (named by its index), or ids missing and no tokenizer.
    """
    check_rollout(record, where)
    if "prompt_ids" in record:
        prompt_ids = record["prompt_ids"]
    else:
        prompt_ids = _tokenise(record["prompt"], f"{where}, field prompt_ids", tokenizer)
    return [
        response_trajectory(record, index, prompt_ids, f"{where}, response {index}", tokenizer)
        for index in range(len(record["step_map"]))
        if index not in without
    ]


def failures(record: Any) -> list[int]:
    """Places of the responses that failed to decode, in a record that need not be a rollout's."""
    errors = record.get("error") if isinstance(record, dict) else None
    return [index for index, error in enumerate(errors) if error is not None] if isinstance(errors, list) else []


def response_trajectory(
    record: dict[str, Any],
    index: int,
    prompt_ids: list[int],
    where: str,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
) -> Trajectory:
    """Returns the checked trajectory of one response of a record that passed `check_rollout`.

    Args:
        record: a rollout record.
        index: which response, from 0.
        prompt_ids: the record's prompt.
        where: file, record and response, for the errors.
        tokenizer: needed for records without `response_ids`, see `record_trajectories`.

    Raises:
        DataError: its decoding failed, it is invalid, or its ids are missing and there is no tokenizer.
    """
    errors = record.get("error")
    if isinstance(errors, list) and errors[index] is not None:
        raise DataError(f"{where}, field error", "a response that was decoded", errors[index])
    step_map, block_size = record["step_map"][index], record.get("block_size")
    if "response_ids" in record:
        trajectory = Trajectory(
            prompt_ids=prompt_ids,
            response_ids=record["response_ids"][index],
            step_map=step_map,
            finish_reason=record["finish_reason"][index],
            num_forwards=record["num_forwards"][index],
            num_steps=record["num_steps"][index],
        )
    else:
        check_step_map(step_map, where, block_size, len(prompt_ids))
        response_ids = _tokenise(record[_text_field(record)][index], f"{where}, field response_ids", tokenizer)
        if len(response_ids) != len(step_map):
            found = f"{len(response_ids)} tokens for {len(step_map)} steps"
            remedy = "t3d import --format release --skip-invalid leaves out what has others"
            raise DataError(f"{where}, field step_map", f"one step per token of the text, tokenised ({remedy})", found)
        stopped = tokenizer is not None and response_ids[-1] in tokenizer.all_special_ids
        reason = "stop" if stopped else "length"
        trajectory = Trajectory(prompt_ids, response_ids, step_map, reason, 0, max(step_map))
    validate_trajectory(trajectory, where, block_size)
    return trajectory


def rollout_record(
    item: dict[str, Any],
    prompt: tuple[str, list[int]],
    trajectories: Sequence[Trajectory],
    texts: Sequence[str],
    answers: Sequence[str],
    block_size: int,
    recorded: Collection[str] = (),
) -> dict[str, Any]:
    """Returns the record of one problem, as a rollout file holds it.

    Of the data set's fields, lists per response are left out, as they are an earlier rollout's; `answer`, which stage 2
    needs for the responses, becomes `reference_answer`.

    Args:
        item: the data set's fields.
        prompt: its text and its token ids.
        trajectories: the responses to it.
        texts: of the responses, see `response_text`.
        answers: found in them.
        block_size: tokens per block of the decoding.
        recorded: of "logprob" and "entropy", those to write.
    """
    kept = {name: value for name, value in item.items() if name not in RESPONSE_FIELDS or not isinstance(value, list)}
    if "answer" in kept:
        kept["reference_answer"] = kept.pop("answer")
    record = {
        **kept,
        "prompt": prompt[0],
        "prompt_ids": prompt[1],
        "full_output": list(texts),
        "extracted_output": list(answers),
        "response_ids": [trajectory.response_ids for trajectory in trajectories],
        "response_length": [len(trajectory.response_ids) for trajectory in trajectories],
        "step_map": [trajectory.step_map for trajectory in trajectories],
        "finish_reason": [trajectory.finish_reason for trajectory in trajectories],
        "num_forwards": [trajectory.num_forwards for trajectory in trajectories],
        "num_steps": [trajectory.num_steps for trajectory in trajectories],
        "block_size": block_size,
    }
    if any(trajectory.error is not None for trajectory in trajectories):
        record["error"] = [trajectory.error for trajectory in trajectories]
    if any(trajectory.num_draft_forwards for trajectory in trajectories):
        record["num_draft_forwards"] = [trajectory.num_draft_forwards for trajectory in trajectories]
    if "logprob" in recorded:
        record["logprob"] = [trajectory.logprobs or [] for trajectory in trajectories]
    if "entropy" in recorded:
        record["entropy"] = [trajectory.entropies or [] for trajectory in trajectories]
    return record


def noted_beside(path: Path) -> dict[str, Any]:
    """What is noted beside a rollout file of model and decoding: stage 1's .meta.json, or a graded file's results."""
    name = path.name.removesuffix(".json")
    candidates = [path.with_name(f"{name}.meta.json")]
    if name.startswith("graded-"):
        candidates.append(path.with_name(f"results-{name.removeprefix('graded-')}.json"))
    for candidate in candidates:
        if candidate.is_file() and isinstance(recorded := read_json(candidate), dict):
            settings = recorded.get("fingerprint", {})
            return {**recorded, **(settings if isinstance(settings, dict) else {})}
    return {}


def response_text(trajectory: Trajectory, tokenizer: "PreTrainedTokenizerBase") -> str:
    """The response as people read it: without the stop token, other special tokens spelled out."""
    ids = trajectory.response_ids
    if trajectory.finish_reason == "stop":
        ids = ids[:-1]
    return decoded(ids, tokenizer)


def encoded(text: str, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Text as tokens, special ones recognised where they are spelled out, and none added."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def decoded(ids: list[int], tokenizer: "PreTrainedTokenizerBase") -> str:
    """Tokens as text, special ones spelled out, and no space cleaned up."""
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _tokenise(text: str, where: str, tokenizer: "PreTrainedTokenizerBase | None") -> list[int]:
    if tokenizer is None:
        raise DataError(where, "stored token ids, as no tokenizer is given", "nothing")
    return encoded(check_text(text, where), tokenizer)


def _check_response_lists(record: dict[str, Any], where: str) -> None:
    text_field = _text_field(record)
    required = [text_field, "step_map"]
    if "response_ids" in record:
        if "prompt_ids" not in record:
            raise DataError(f"{where}, field prompt_ids", "the prompt's ids beside response_ids", "nothing")
        required += ["response_ids", "finish_reason", "num_forwards", "num_steps"]
    for field in required:
        if not isinstance(record.get(field), list):
            found = _kind_of(record, field)
            raise DataError(f"{where}, field {field}", "a list with one entry per response", found)
    texts = record[text_field]
    if not texts:
        raise DataError(f"{where}, field {text_field}", "at least one response", "an empty list")
    for text in texts:
        if not isinstance(text, str):
            raise DataError(f"{where}, field {text_field}", "strings", json_kind(text))
    for field in response_fields(record):
        if len(record[field]) != len(texts):
            found = f"{len(record[field])} for {len(texts)} responses"
            raise DataError(f"{where}, field {field}", "one entry per response", found)


def _text_field(record: dict[str, Any]) -> str:
    return "answer" if "answer" in record and "full_output" not in record else "full_output"


def _check_int(value: Any, minimum: int, where: str) -> None:
    if type(value) is not int or value < minimum:  # a bool is an int to isinstance
        raise DataError(where, f"a whole number of at least {minimum}", repr(value))


def _check_ints(values: Any, minimum: int, where: str) -> None:
    if not isinstance(values, list):
        raise DataError(where, "a list of whole numbers", json_kind(values))
    for position, value in enumerate(values):
        if type(value) is not int or value < minimum:
            raise DataError(where, f"whole numbers of at least {minimum}", f"{value!r} at position {position}")


def _first_disorder(step_map: Sequence[int], block_size: int, offset: int) -> int | None:
    """Returns where the first block starts that has a step no higher than those of earlier blocks."""
    last_step = 0
    for start in range(-offset, len(step_map), block_size):
        block = step_map[max(start, 0) : start + block_size]
        if min(block) <= last_step:
            return max(start, 0)
        last_step = max(block)
    return None


def _kind_of(record: dict[str, Any], field: str) -> str:
    return json_kind(record[field]) if field in record else "nothing"

"""Rollouts of other engines as this project's records, every one checked."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unicodedata import normalize

from t3d.data.engines import ENGINES, OWN_FIELDS, EngineOutput, integers, recount
from t3d.errors import DataError
from t3d.grading.extract import extract
from t3d.prompts import build_prompt
from t3d.storage.files import iter_json_list, json_kind, write_json_list
from t3d.trajectory import (
    RESPONSE_FIELDS,
    Trajectory,
    check_rollout,
    decoded,
    encoded,
    response_text,
    response_trajectory,
    rollout_record,
    validate_trajectory,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

FORMATS = (*ENGINES, "release")
PROMPT_IDS = ("prompt_ids", "prompt_token_ids", "input_ids")
"""Names under which a user may have put the prompt's tokens beside an engine's output."""


@dataclass(frozen=True)
class Source:
    """How a file is read.

    Attributes:
        format: one of `FORMATS`.
        block_size: positions per block of the decoding.
        data_type: math, code or option; how answers are found, and prompts built.
        tokenizer: the model's; None if the file holds all texts.
        stop_ids: tokens that end a response.
        skip_invalid: leave invalid responses out and count them, instead of ending at the first.
    """

    format: str
    block_size: int
    data_type: str = "math"
    tokenizer: "PreTrainedTokenizerBase | None" = None
    stop_ids: frozenset[int] = frozenset()
    skip_invalid: bool = False


@dataclass
class Summary:
    """What an import did.

    Attributes:
        records: written.
        responses: written.
        cut: of them, those that went on behind their stop token.
        unstopped: of them, those that the engine calls stopped although no stop token ends them.
        invalid: responses left out.
        first_invalid: why the first of them was.
    """

    records: int = 0
    responses: int = 0
    cut: int = 0
    unstopped: int = 0
    invalid: int = 0
    first_invalid: str = ""

    def leave_out(self, error: DataError) -> None:
        """Counts an invalid response."""
        self.invalid += 1
        self.first_invalid = self.first_invalid or str(error)


class Response(NamedTuple):
    """One response, checked, with its prompt's text and its own."""

    prompt: str
    trajectory: Trajectory
    text: str


def import_rollouts(path: Path, target: Path, source: Source, items: list[dict[str, Any]] | None = None) -> Summary:
    """Writes the rollouts of another engine as a rollout file of this project, whole or not at all.

    An engine's file is a JSON list, or JSON Lines, of its outputs.  The prompt is the one that the output carries,
    or stands beside it (`prompt`, or its tokens under one of `PROMPT_IDS`), or is built from the data set.

    Args:
        path: the file.
        target: the file to write.
        source: how to read it.
        items: the data set that was answered, in the file's order; each problem has as many outputs as every other
            one, one after the other.  None: every output is a record with the fields that stand beside it.

    Raises:
        DataError: an invalid record (named), none that is valid, outputs that do not fit the data set, or `target` is
            the file itself.
    """
    if path.resolve() == target.resolve():
        raise DataError(target, "another file than the engine's own", "the same")
    summary = Summary()

    def kept() -> Iterator[dict[str, Any]]:
        release = source.format == "release"
        yield from _release_records(path, source, summary) if release else _records(path, source, items, summary)
        if not summary.records:
            reason = f" ({summary.first_invalid})" if summary.invalid else ""
            raise DataError(path, "at least one valid response", f"none{reason}")

    write_json_list(target, kept())
    _report(target, source, summary)
    return summary


@contextmanager
def _skipping(source: Source, summary: Summary) -> Iterator[None]:
    """Leaves out what the block finds invalid, where that is asked for."""
    try:
        yield
    except DataError as error:
        if not source.skip_invalid:
            raise
        summary.leave_out(error)


def _report(target: Path, source: Source, summary: Summary) -> None:
    log.info("%s: %d record(s), %d response(s)", target, summary.records, summary.responses)
    if summary.invalid:
        log.warning("%d invalid response(s) left out, first: %s", summary.invalid, summary.first_invalid)
    if summary.cut:
        log.info("%d response(s) cut behind their first stop token", summary.cut)
    if summary.unstopped:
        log.warning(
            "%d response(s) that the engine calls stopped end without a stop token: they count as cut (length)",
            summary.unstopped,
        )
    if not source.stop_ids and source.format in ENGINES:
        log.warning("no tokenizer is given: what ends a response is known only where the engine says so")


def _records(
    path: Path, source: Source, items: list[dict[str, Any]] | None, summary: Summary
) -> Iterator[dict[str, Any]]:
    """One record per problem of the data set, or per output."""
    per_item = 1 if items is None else _outputs_per_item(path, len(items))
    outputs = enumerate(iter_json_list(path))
    for number, group in enumerate(iter(lambda: list(islice(outputs, per_item)), [])):
        item = None if items is None else items[number]
        responses: list[Response] = []
        for index, raw in group:
            where = f"{path}, record {index}"
            with _skipping(source, summary):
                response = _response(raw, item, source, where, summary)
                if responses and response.trajectory.prompt_ids != responses[0].trajectory.prompt_ids:
                    raise DataError(f"{where}, prompt", "the prompt of the problem's other outputs", "another one")
                responses.append(response)
        if responses:
            yield _record(_user_fields(group[0][1], source) if item is None else item, responses, source, summary)


def _outputs_per_item(path: Path, num_items: int) -> int:
    total = sum(1 for _ in iter_json_list(path))
    if total < num_items or total % num_items:
        raise DataError(path, "as many outputs for each problem of the data set", f"{total} for {num_items} problems")
    return total // num_items


def _user_fields(raw: dict[str, Any], source: Source) -> dict[str, Any]:
    left_out = {*OWN_FIELDS[source.format], *PROMPT_IDS, *RESPONSE_FIELDS, "prompt", "block_size"}
    return {name: value for name, value in raw.items() if name not in left_out}


def _record(
    fields: dict[str, Any], responses: list[Response], source: Source, summary: Summary, block_size: int | None = None
) -> dict[str, Any]:
    summary.records += 1
    summary.responses += len(responses)
    trajectories = [response.trajectory for response in responses]
    texts = [response.text for response in responses]
    answers = [extract(text, fields, source.data_type) for text in texts]
    known = {
        "logprob": all(trajectory.logprobs is not None for trajectory in trajectories),
        "entropy": all(trajectory.entropies is not None for trajectory in trajectories),
    }
    return rollout_record(
        fields,
        (responses[0].prompt, trajectories[0].prompt_ids),
        trajectories,
        texts,
        answers,
        block_size or source.block_size,
        [name for name, is_known in known.items() if is_known],
    )


def _response(raw: Any, item: dict[str, Any] | None, source: Source, where: str, summary: Summary) -> Response:
    """One output of an engine, checked.

    Raises:
        DataError: it is invalid, or needs a tokenizer.
    """
    if not isinstance(raw, dict):
        raise DataError(where, "an object, one output of the engine", json_kind(raw))
    output = ENGINES[source.format](raw, where)
    prompt, prompt_ids = _prompt(raw, output, item, source, where)
    ids, steps = output.response_ids, output.steps
    if len(ids) != len(steps) or not ids:
        raise DataError(where, "one step for each of at least one token", f"{len(steps)} steps for {len(ids)} tokens")
    if output.restarts:
        steps = recount(steps, source.block_size, len(prompt_ids), where)
    end = next((place for place, token in enumerate(ids, 1) if token in source.stop_ids), len(ids))
    block_end = -(-(len(prompt_ids) + end) // source.block_size) * source.block_size - len(prompt_ids)
    stopped = ids[end - 1] in source.stop_ids or (bool(output.stopped) and not source.stop_ids)
    trajectory = Trajectory(
        prompt_ids=prompt_ids,
        response_ids=ids[:end],
        step_map=steps[:end],
        finish_reason="stop" if stopped else "length",
        num_forwards=0,  # no engine tells
        num_steps=max(steps[:block_end]),
        logprobs=output.logprobs and output.logprobs[:end],
        entropies=output.entropies and output.entropies[:end],
    )
    validate_trajectory(trajectory, where, source.block_size)
    text = output.text if source.tokenizer is None else response_text(trajectory, source.tokenizer)
    if text is None:
        raise DataError(f"{where}, field text", "the response's text, as no tokenizer is given", "none of it alone")
    summary.cut += end < len(ids)
    summary.unstopped += bool(output.stopped) and not stopped
    return Response(prompt, trajectory, text)


def _prompt(
    raw: dict[str, Any], output: EngineOutput, item: dict[str, Any] | None, source: Source, where: str
) -> tuple[str, list[int]]:
    """The prompt's text and tokens, from wherever they are known.

    Raises:
        DataError: they are known nowhere, or two places contradict each other.
    """
    text, ids = _known_prompt(raw, output, item, source, where)
    if ids is None:
        expected = "the prompt: its tokens as prompt_ids beside the output, or its text or a data set with a tokenizer"
        raise DataError(where, expected, "none")
    if output.prompt_ids is not None and output.prompt_ids != ids:
        found = f"{len(output.prompt_ids)} tokens that are not the {len(ids)} in front of the response"
        raise DataError(f"{where}, prompt", "the tokens that stand beside the output", found)
    if output.num_prompt_tokens not in (None, len(ids)):
        found = f"{output.num_prompt_tokens} by the engine's count, {len(ids)} by the prompt"
        raise DataError(f"{where}, prompt", "as many tokens as the engine counted", found)
    if text is None:
        raise DataError(f"{where}, field prompt", "the prompt's text, as no tokenizer is given", "nothing")
    if item is not None and normalize("NFC", item["question"]) not in normalize("NFC", text):
        found = "another one (is the file in the data set's order?)"
        raise DataError(f"{where}, prompt", "a prompt that asks the data set's question", found)
    return text, ids


def _known_prompt(
    raw: dict[str, Any], output: EngineOutput, item: dict[str, Any] | None, source: Source, where: str
) -> tuple[str | None, list[int] | None]:
    text, tokenizer = raw.get("prompt"), source.tokenizer
    if text is not None and not isinstance(text, str):
        raise DataError(f"{where}, field prompt", "a string", json_kind(text))
    beside = [integers(raw, name, where) for name in PROMPT_IDS if raw.get(name) is not None]
    ids = beside[0] if beside else output.prompt_ids
    if tokenizer is None:
        return text, ids
    if ids is None and text is None and item is not None:
        return build_prompt(tokenizer, item, source.data_type)
    if ids is None and text is not None:
        ids = encoded(text, tokenizer)
    if ids is not None and text is None:
        text = decoded(ids, tokenizer)
    return text, ids


def _release_records(path: Path, source: Source, summary: Summary) -> Iterator[dict[str, Any]]:
    """The records of the authors' release, with token ids.

    Read from github.com/Tyrion58/T3D (sample/sdar_sample.py, commit b47dc02) and github.com/Gen-Verse/dLLM-RL: the data
    set's fields, and per problem `prompt`, and lists `full_output` (texts, the stop token spelled out), `step_map`
    (from 1, counted over the response), `extracted_output` and `response_length`.  Its files hold no token ids: texts
    are tokenised again, and a response is refused where that does not give as many tokens as it has steps.
    Responses that were lost have an empty text and map.
    """
    for index, record in enumerate(iter_json_list(path)):
        where = f"{path}, record {index}"
        responses: list[Response] = []
        with _skipping(source, summary):
            check_rollout(record, where)
            record.setdefault("block_size", source.block_size)
            for place in range(len(record["step_map"])):
                with _skipping(source, summary):
                    responses.append(_release_response(record, place, source, f"{where}, response {place}"))
        if responses:
            own = {*RESPONSE_FIELDS, *PROMPT_IDS, "prompt", "block_size"}
            item = {name: value for name, value in record.items() if name not in own}
            yield _record(item, responses, source, summary, record["block_size"])


def _release_response(record: dict[str, Any], place: int, source: Source, where: str) -> Response:
    if source.tokenizer is None:
        raise DataError(where, "a tokenizer, as the release's files hold texts alone", "none")
    prompt_ids = record.get("prompt_ids")
    if prompt_ids is None:
        prompt_ids = encoded(record["prompt"], source.tokenizer)
    trajectory = response_trajectory(record, place, prompt_ids, where, source.tokenizer)
    return Response(record["prompt"], trajectory, response_text(trajectory, source.tokenizer))

"""Stage 2: from the rollouts as decoded to the records that training reads."""

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from t3d.errors import DataError
from t3d.storage.files import iter_json_list, write_json_list
from t3d.trajectory import check_rollout, check_step_map, response_fields, response_trajectory

logger = logging.getLogger(__name__)

_MAX_REPORTS = 20


@dataclass
class RenameSummary:
    """What stage 2 did.

    Attributes:
        num_read: records read.
        num_kept: records written, some perhaps without a few of their responses.
        dropped_records: dropped records by reason (what was expected of them).
        dropped_responses: invalid responses of records that were kept, by reason.
        reports: one line per drop, the first few only.
    """

    num_read: int = 0
    num_kept: int = 0
    dropped_records: Counter[str] = field(default_factory=Counter)
    dropped_responses: Counter[str] = field(default_factory=Counter)
    reports: list[str] = field(default_factory=list)

    def add_drop(self, drops: Counter[str], place: str, error: DataError) -> None:
        """Counts one drop, and keeps its report while there are few."""
        drops[error.expected] += 1
        if len(self.reports) < _MAX_REPORTS:
            self.reports.append(f"dropped {place}: {str(error).removeprefix(place).lstrip(',: ')}")


def rename_answers(source: Path, target: Path) -> RenameSummary:
    """Writes the valid records of a rollout file with `full_output` renamed to `answer`, all else as it was.

    A response that failed to decode, or with an invalid trajectory, is dropped together with its entry in every
    list per response; a record without any valid response, or without a rollout's shape, is dropped whole. Every
    drop is counted and the first 20 are logged. Records pass one at a time: memory does not grow with their number.

    Args:
        source: a rollout file of this project or of the release.
        target: the file to write; an existing one is replaced once the new one is whole.

    Raises:
        DataError: `source` is unreadable, no JSON list or without a valid record, or `target` unwritable.
    """
    summary = RenameSummary()

    def kept() -> Iterator[dict[str, Any]]:
        yield from _renamed_records(source, summary)
        if not summary.num_kept:
            first = f", {summary.reports[0]}" if summary.reports else ""
            raise DataError(source, "at least one valid record", f"none in {summary.num_read}{first}")

    write_json_list(target, kept())
    for report in summary.reports:
        logger.warning("%s", report)
    num_drops = summary.dropped_records.total() + summary.dropped_responses.total()
    if num_drops > len(summary.reports):
        logger.warning("dropped %d more", num_drops - len(summary.reports))
    logger.info(
        "%s: %d records read, %d kept, %d dropped%s; %d single responses dropped%s",
        target,
        summary.num_read,
        summary.num_kept,
        summary.dropped_records.total(),
        _by_reason(summary.dropped_records),
        summary.dropped_responses.total(),
        _by_reason(summary.dropped_responses),
    )
    return summary


def _renamed_records(source: Path, summary: RenameSummary) -> Iterator[dict[str, Any]]:
    for index, record in enumerate(iter_json_list(source)):
        summary.num_read += 1
        try:
            renamed = _renamed(record, f"record {index}", summary)
        except DataError as error:
            summary.add_drop(summary.dropped_records, f"record {index}", error)
            continue
        summary.num_kept += 1
        yield renamed


def _renamed(record: Any, where: str, summary: RenameSummary) -> dict[str, Any]:
    """Returns the record under its new key and without its invalid responses.

    Raises:
        DataError: the record has no rollout's shape, or no valid response.
    """
    check_rollout(record, where)
    if "full_output" not in record:
        raise DataError(f"{where}, field full_output", "the field that stage 2 renames", "nothing")
    if isinstance(record.get("answer"), list):
        raise DataError(f"{where}, field answer", "no such field before stage 2", "one beside full_output")
    errors: dict[int, DataError] = {}
    for index in range(len(record["full_output"])):
        try:
            _check_response(record, index, f"{where}, response {index}")
        except DataError as error:
            errors[index] = error
    if len(errors) == len(record["full_output"]):
        raise errors[0]
    for index, reason in errors.items():
        summary.add_drop(summary.dropped_responses, f"{where}, response {index}", reason)
    for name in response_fields(record):
        record[name] = [value for index, value in enumerate(record[name]) if index not in errors]
    if isinstance(record.get("error"), list):
        del record["error"]  # with the responses that failed
    names = {"full_output": "answer", "answer": "reference_answer"}  # the latter the problem's own
    return {names.get(name, name): value for name, value in record.items()}


def _check_response(record: dict[str, Any], index: int, where: str) -> None:
    """Checks one response as far as its record allows: there is no tokenizer at this stage.

    Raises:
        DataError: the response is invalid.
    """
    if "response_ids" in record:
        response_trajectory(record, index, record["prompt_ids"], where)
    else:
        prompt_length = len(record["prompt_ids"]) if "prompt_ids" in record else None
        check_step_map(record["step_map"][index], where, record.get("block_size"), prompt_length)


def _by_reason(drops: Counter[str]) -> str:
    reasons = "; ".join(f"{count} expected {reason}" for reason, count in drops.most_common())
    return f" ({reasons})" if reasons else ""

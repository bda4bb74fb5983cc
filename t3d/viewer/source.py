"""A rollout file as the page shows it: every response with the step of every token."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from t3d.errors import DataError
from t3d.sdar.checkpoint import load_tokenizer, resolve_checkpoint
from t3d.trajectory import Trajectory, encoded, noted_beside, read_rollouts, response_trajectory
from t3d.viewer.pieces import PieceTable

SETTINGS = {
    "checkpoint": "model",
    "block_size": "block",
    "denoising_steps": "steps",
    "temperature": "temperature",
    "remasking_strategy": "strategy",
    "confidence": "confidence",
    "seed": "seed",
}
"""What is said of a decoding, by its name in the files beside a rollout file, and how it is called on the page."""


@dataclass(frozen=True)
class Response:
    """One response of one problem.

    Attributes:
        problem: the problem's text.
        repetition: which record of this problem it belongs to, from 0.
        number: which response of its record, from 0.
        truth: the right answer, where the record has one.
        trajectory: tokens and steps; None if decoding failed.
        pieces: numbers of the tokens' texts in the page's table.
        head: the same of the prompt's tokens that share the first block.
        extracted: the answer found in the response, where it was looked for.
        correct: the grade, where it was graded.
        logprobs: of each token at its reveal, in nats, where recorded.
        entropies: of each token's position at its reveal, in nats, where recorded.
        error: why there is no trajectory.
    """

    problem: str
    repetition: int
    number: int
    truth: str | None
    trajectory: Trajectory | None
    pieces: list[int]
    head: list[int]
    extracted: str | None
    correct: bool | None
    logprobs: list[float] | None
    entropies: list[float] | None
    error: str | None

    @property
    def key(self) -> tuple[str, int, int]:
        """What a response of the same problem in another file shares with it."""
        return self.problem, self.repetition, self.number


@dataclass(frozen=True)
class Source:
    """A rollout file.

    Attributes:
        title: model and decoding, or the file's name where they are not known.
        about: (what, value) of the file, its model and its decoding, as far as they are known.
        block_size: positions per block, counted from position 0 of prompt + response.
        responses: in the order of the file.
    """

    title: str
    about: list[tuple[str, str]]
    block_size: int
    responses: list[Response]


def tokenizer_folder(path: Path, given: str | None) -> Path:
    """The folder with the tokenizer of a rollout file: what was given, or the checkpoint named beside the file.

    Raises:
        DataError: neither is there.
        CheckpointError: it cannot be had.
    """
    name = given or noted_beside(path).get("checkpoint")
    if name is None:
        expected = "--tokenizer FOLDER, as no file beside the rollouts names their checkpoint"
        raise DataError(path, expected, "nothing")
    return resolve_checkpoint(str(name))


def load_source(path: Path, pieces: PieceTable, limit: int | None) -> Source:
    """Reads a rollout file, graded or not, of this project or of the release.

    Args:
        path: the file.
        pieces: the page's table of token texts, which grows.
        limit: only the first problems; None reads all.

    Raises:
        DataError: an invalid record, named, or records of different block sizes.
    """
    known = noted_beside(path)
    responses: list[Response] = []
    sizes: set[int] = set()
    repetitions: Counter[str] = Counter()
    for index, record in tqdm(read_rollouts(path), desc=path.name, unit="problem", delay=1):
        if limit is not None and index >= limit:
            break
        problem = str(record.get("question", record["prompt"]))
        sizes.add(record.get("block_size", known.get("block_size", 4)))
        if len(sizes) > 1:
            raise DataError(f"{path}, record {index}, field block_size", "one block size in a file", sorted(sizes))
        responses += _responses(record, problem, repetitions[problem], f"{path}, record {index}", pieces, max(sizes))
        repetitions[problem] += 1
    if not responses:
        raise DataError(path, "at least one problem", "an empty list")
    return Source(_title(path, known), _about(path, known), max(sizes), responses)


def open_pieces(path: Path, tokenizer: str | None) -> PieceTable:
    """The table of token texts for a rollout file and what is shown beside it.

    Raises:
        UserError: see `tokenizer_folder`.
    """
    return PieceTable(load_tokenizer(tokenizer_folder(path, tokenizer)))


def _title(path: Path, known: dict[str, Any]) -> str:
    model, steps = known.get("checkpoint"), known.get("denoising_steps")
    return path.name if model is None else f"{Path(str(model)).name}, {known.get('block_size')}/{steps}"


def _about(path: Path, known: dict[str, Any]) -> list[tuple[str, str]]:
    told = [(title, str(known[name])) for name, title in SETTINGS.items() if known.get(name) is not None]
    return [("file", path.name), *told]


def _responses(
    record: dict[str, Any], problem: str, repetition: int, where: str, pieces: PieceTable, block_size: int
) -> list[Response]:
    prompt_ids = record.get("prompt_ids")
    if prompt_ids is None:
        prompt_ids = encoded(record["prompt"], pieces.tokenizer)
    truth = record.get("ground_truth_answer")
    head = pieces.numbers(prompt_ids[len(prompt_ids) // block_size * block_size :])
    found = []
    for number in range(len(record["step_map"])):
        error = _entry(record, "error", number)
        trajectory, numbers = None, []
        if error is None:
            place = f"{where}, response {number}"
            trajectory = response_trajectory(record, number, prompt_ids, place, pieces.tokenizer)
            numbers = pieces.numbers(trajectory.response_ids)
        extracted = _entry(record, "extracted_output", number)
        found.append(
            Response(
                problem=problem,
                repetition=repetition,
                number=number,
                truth=None if truth is None else str(truth),
                trajectory=trajectory,
                pieces=numbers,
                head=head,
                extracted=None if extracted is None else str(extracted),
                correct=_entry(record, "correctness", number),
                logprobs=_figures(record, "logprob", number, len(numbers), where),
                entropies=_figures(record, "entropy", number, len(numbers), where),
                error=error,
            )
        )
    return found


def _entry(record: dict[str, Any], field: str, number: int) -> Any:
    values = record.get(field)
    return values[number] if isinstance(values, list) else None


def _figures(record: dict[str, Any], field: str, number: int, length: int, where: str) -> list[float] | None:
    """Recorded values per token.

    Raises:
        DataError: not one number per token.
    """
    values = _entry(record, field, number)
    if values is None:
        return None
    numbers = isinstance(values, list) and all(type(value) in (int, float) for value in values)
    if not numbers or len(values) != length:
        raise DataError(f"{where}, response {number}, field {field}", f"{length} numbers, one per token", "others")
    return [float(value) for value in values]

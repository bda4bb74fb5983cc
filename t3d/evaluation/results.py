"""The results of an evaluation: what they hold, and how they are written and read."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from t3d.evaluation.metrics import Metrics
from t3d.storage.fields import read_fields
from t3d.storage.files import read_json, write_json_atomic

# A field added after the first version has a default: results of older versions are read too.


@dataclass(frozen=True)
class Decoding:
    """How responses were decoded; None: nothing tells."""

    block_size: int | None
    denoising_steps: int | None
    remasking_strategy: str | None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    dynamic_threshold: float | None = None
    max_new_tokens: int | None = None
    confidence: str | None = None
    draft: str | None = None


UNKNOWN_DECODING = Decoding(None, None, None)


@dataclass(frozen=True)
class LeftOut:
    """A response without a grade: its record and its place among the record's responses, from 0, and the reason."""

    record: int
    response: int
    reason: str


@dataclass(frozen=True)
class Disagreement:
    """An answer that our grader and plain math-verify judge differently: its place, and what was compared."""

    record: int
    response: int
    answer: str
    truth: str
    correct: bool
    math_verify: bool


@dataclass(frozen=True)
class BadRecord:
    """A record that no program can pass as it was published: its number from 0, and its question's first line."""

    record: int
    question: str


@dataclass(frozen=True)
class KnownBad:
    """The records among those graded that are known to be bad, and whether they were mended before."""

    repaired: bool = False
    records: list[BadRecord] = field(default_factory=list)


@dataclass(frozen=True)
class Results:
    """One evaluation.

    Attributes:
        dataset: the data set's name.
        checkpoint: the model, as it was named; None if nothing tells.
        decoding: how the responses were decoded.
        metrics: accuracy and cost.
        environment: versions, commit and machine.
        config: the configuration of the evaluation.
        rollouts: the file that was graded.
        left_out: responses without a grade.
        known_bad: records that are known to be bad.
        leakage: what is wrong with evaluating this checkpoint on this data set, if anything is known to be.
        acc_math_verify: accuracy by plain math-verify (mathematics only), to put beside other people's figures.
        disagreements: the answers that it judges otherwise than our grader, whose verdicts are `metrics.acc`.
    """

    dataset: str
    checkpoint: str | None
    decoding: Decoding
    metrics: Metrics
    environment: dict[str, Any]
    config: dict[str, Any]
    rollouts: str | None = None
    left_out: list[LeftOut] = field(default_factory=list)
    known_bad: KnownBad = KnownBad()
    leakage: str | None = None
    acc_math_verify: float | None = None
    disagreements: list[Disagreement] = field(default_factory=list)

    @property
    def model(self) -> str:
        """What to call the model: its checkpoint or, if nothing tells, the file of its answers."""
        return self.checkpoint or self.rollouts or "unknown"


def to_json(results: Results) -> dict[str, Any]:
    """The results as a JSON object, decoding and figures beside the rest."""
    values = asdict(results)
    decoding, metrics = values.pop("decoding"), values.pop("metrics")
    return {"dataset": values.pop("dataset"), "checkpoint": values.pop("checkpoint"), **decoding, **metrics, **values}


def from_json(values: Any, where: str | Path) -> Results:
    """Reads what `to_json` gave, of this version or another one.

    Raises:
        DataError: a field is missing or of another type; it is named, behind `where`.
    """
    if isinstance(values, dict):
        decoding, metrics = read_fields(Decoding, values, where), read_fields(Metrics, values, where)
        values = {**values, "decoding": decoding, "metrics": metrics}
    return read_fields(Results, values, where)


def write_results(path: Path, results: Results) -> None:
    """Writes a results file, whole or not at all.

    Raises:
        DataError: the file cannot be written.
    """
    write_json_atomic(path, to_json(results))


def read_results(path: Path) -> Results:
    """Reads a results file.

    Raises:
        DataError: it is not one; the field is named.
    """
    return from_json(read_json(path), path)

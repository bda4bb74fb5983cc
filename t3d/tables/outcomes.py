"""Which problems an evaluation answered rightly, read from the files that it wrote."""

import hashlib
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from t3d.errors import DataError
from t3d.evaluation.results import Results
from t3d.storage.files import iter_json_list, json_kind

NAME = "results-"


@dataclass(frozen=True)
class Outcomes:
    """Grades of one evaluation.

    Attributes:
        graded: grades of the responses to each problem, in the data set's order; a problem is known by a digest.
        questions: the beginning of each problem's text, for messages.
        families: problem -> what it counts with in errors and tests, of those that do not count by themselves.
    """

    graded: dict[str, list[bool]]
    questions: dict[str, str]
    families: dict[str, str] = field(default_factory=dict)


def load_outcomes(path: Path, results: Results) -> Outcomes:
    """Reads the grades that lie beside the results file `path`, in graded-<name>.json.

    A problem without any graded response (decoding failed) is left out of `graded`.

    Raises:
        DataError: no such file, or it does not belong to these results.
    """
    if not path.name.startswith(NAME):
        raise DataError(path, "a file called results-<name>.json, beside graded-<name>.json", path.name)
    graded_path = path.with_name("graded-" + path.name.removeprefix(NAME))
    graded: dict[str, list[bool]] = {}
    questions: dict[str, str] = {}
    families: dict[str, str] = {}
    seen: Counter[str] = Counter()
    for index, record in enumerate(iter_json_list(graded_path)):
        if not isinstance(record, dict) or not {"question", "correctness"} <= record.keys():
            raise DataError(f"{graded_path}, record {index}", "question and correctness", json_kind(record))
        digest = _digest(record)
        seen[digest] += 1
        problem = f"{digest}-{seen[digest]}" if seen[digest] > 1 else digest
        questions[problem] = str(record["question"])[:60]
        if "family" in record:
            families[problem] = str(record["family"])
        grades = [correct for correct in record["correctness"] if correct is not None]
        if grades:
            graded[problem] = grades
    right, n = (sum(map(count, graded.values())) for count in (sum, len))
    told = results.metrics
    if n != told.n or (n and not math.isclose(right / n, told.acc)):
        expected = f"the {told.n} grades of {path.name}, {told.acc:.4f} of them right"
        raise DataError(graded_path, expected, f"{right} right of {n}")
    return Outcomes(graded, questions, families)


def _digest(record: dict[str, Any]) -> str:
    """Identity of a problem: its question and answer.  Check programs do not count: known bad ones are mended."""
    text = f"{record['question']}\0{record.get('ground_truth_answer', '')}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]

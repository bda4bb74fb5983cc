import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from t3d.evaluation.results import from_json
from t3d.tables.cells import Run
from t3d.tables.outcomes import Outcomes


@pytest.fixture
def make_run(tmp_path) -> Callable[..., Run]:
    """Builds a finished run from a string of right (x) and wrong (.) answers."""

    def build(model: str, answers: str, figures: dict[str, float] | None = None, **place: Any) -> Run:
        axes = {
            "base": None,
            "model": model,
            "dataset": "A",
            "strategy": "low_confidence_static",
            "block_size": 4,
            "denoising_steps": 2,
        } | place
        axes["tokps"] = f"{axes['block_size'] / axes['denoising_steps']:.3g}"
        graded = {str(number): [answer == "x"] for number, answer in enumerate(answers)}
        acc = answers.count("x") / len(answers)
        values = {
            "dataset": axes["dataset"],
            "checkpoint": f"somewhere/{model}",
            "n": len(answers),
            "acc": acc,
            "stderr": (acc * (1 - acc) / len(answers)) ** 0.5,
            "avg_len": 30.0,
            "avg_steps": 15.0,
            "tokens_per_step": axes["block_size"] / axes["denoising_steps"],
            "tokens_per_forward": 0.9 * axes["block_size"] / axes["denoising_steps"],
            "tokens_per_second": 100.0,
            "latency_s": 0.3,
            "block_size": axes["block_size"],
            "denoising_steps": axes["denoising_steps"],
            "remasking_strategy": axes["strategy"],
            "config": {"rollout": {"remasking_strategy": axes["strategy"], "temperature": 0.1}, "table": {}},
            "environment": {"torch": "2"},
            "leakage": None,
        } | (figures or {})
        name = "-".join(str(value) for value in (*axes.values(), answers))
        results, outcomes = from_json(values, name), Outcomes(graded, dict.fromkeys(graded, "?"))
        return Run(axes, f"{axes['base']} {model}", results, outcomes, Path(name))

    return build


@pytest.fixture
def write_results(tmp_path) -> Callable[..., Path]:
    """Writes the files of an evaluation: results, and the graded records."""

    def write(name: str, correctness: list[list[bool | None]], **extra: Any) -> Path:
        records = [
            {"question": f"Problem {number}?", "ground_truth_answer": "1", "correctness": grades}
            for number, grades in enumerate(correctness)
        ]
        for field, values in extra.items():
            for record, value in zip(records, values, strict=True):
                record[field] = value
        grades = [grade for values in correctness for grade in values if grade is not None]
        acc = sum(grades) / len(grades) if grades else 0.0
        results = {
            "dataset": "Problems",
            "checkpoint": f"models/{name}",
            "n": len(grades),
            "acc": acc,
            "stderr": (acc * (1 - acc) / max(len(grades), 1)) ** 0.5,
            "block_size": 4,
            "denoising_steps": 1,
            "remasking_strategy": "low_confidence_static",
            "avg_len": 30.0,
            "avg_steps": None,
            "tokens_per_step": None,
            "tokens_per_forward": 3.5,
            "tokens_per_second": None,
            "config": {"rollout": {"remasking_strategy": "low_confidence_static"}},
            "environment": {"torch": "2"},
            "leakage": None,
        }
        path = tmp_path / f"results-{name}.json"
        path.write_text(json.dumps(results))
        (tmp_path / f"graded-{name}.json").write_text(json.dumps(records))
        return path

    return write

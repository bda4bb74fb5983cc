import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

TEACHER = Path(__file__).parents[2] / "t3d" / "toy" / "teacher"


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(TEACHER)


@pytest.fixture
def write_rollouts(tmp_path, tokenizer) -> Callable[..., Path]:
    """Writes a rollout file of texts, decoded one token per step from left to right, and the note beside it."""

    def write(name: str, texts: list[str], note: dict[str, Any] | None = None, **fields: Any) -> Path:
        records = []
        for number, text in enumerate(texts):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            record = {
                "question": f"Problem {number}?",
                "ground_truth_answer": "1",
                "prompt": "abc",
                "prompt_ids": tokenizer("abc de", add_special_tokens=False)["input_ids"],
                "block_size": 4,
                "full_output": [text],
                "response_ids": [ids],
                "step_map": [list(range(1, len(ids) + 1))],
                "finish_reason": ["stop"],
                "num_forwards": [len(ids) + 1],
                "num_steps": [len(ids)],
            }
            records.append(record | {field: values[number] for field, values in fields.items()})
        path = tmp_path / name
        path.write_text(json.dumps(records))
        note = {"checkpoint": str(TEACHER)} if note is None else note
        path.with_suffix(".meta.json").write_text(json.dumps(note))
        return path

    return write

"""Training data: the tiny checkpoint's own decoding, and worked answers."""

import json

import pytest

from t3d.decoding import DecodingConfig, decode
from t3d.prompts import build_prompt
from t3d.sdar.checkpoint import load_model, load_tokenizer
from t3d.storage.files import write_json_list
from t3d.toy.problems import generate


@pytest.fixture(scope="session")
def trajectories(checkpoint, tmp_path_factory):
    """Stage 2's output: the model's own decoded responses, some stopped and some cut."""
    model, tokenizer = load_model(checkpoint), load_tokenizer(checkpoint)
    problems = [item for item, _ in zip(generate("train"), range(20), strict=False)]
    prompts = [build_prompt(tokenizer, item, "math") for item in problems]
    settings = DecodingConfig(
        mask_id=tokenizer.mask_token_id,
        max_new_tokens=21,
        temperature=1.0,
        stop_ids=tuple(range(100, 140)),
        seed=1,
    )
    records = []
    decoded = decode(model, [ids for _, ids in prompts], settings)
    assert {trajectory.finish_reason for trajectory in decoded} == {"stop", "length"}
    for item, (prompt, _), trajectory in zip(problems, prompts, decoded, strict=True):
        records.append(
            {
                "question": item["question"],
                "prompt": prompt,
                "prompt_ids": trajectory.prompt_ids,
                "answer": [tokenizer.decode(trajectory.response_ids)],
                "response_ids": [trajectory.response_ids],
                "step_map": [trajectory.step_map],
                "finish_reason": [trajectory.finish_reason],
                "num_forwards": [trajectory.num_forwards],
                "num_steps": [trajectory.num_steps],
                "block_size": 4,
            }
        )
    path = tmp_path_factory.mktemp("data") / "trajectories.json"
    write_json_list(path, records)
    return path


@pytest.fixture(scope="session")
def answers(tmp_path_factory):
    """Real data: questions with worked answers."""
    path = tmp_path_factory.mktemp("data") / "answers.json"
    path.write_text(json.dumps([item for item, _ in zip(generate("train"), range(20), strict=False)]))
    return path

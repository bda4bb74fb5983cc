"""A tiny model folder and training data made from its own decoding."""

import json

import pytest
import torch

from t3d.decoding import DecodingConfig, decode
from t3d.files import write_json_list
from t3d.sdar import SDARConfig, SDARForCausalLM
from t3d.toy.problems import generate
from t3d.toy.tokenizer import build_tokenizer


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A random model of the toy world's vocabulary, with its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = build_tokenizer(num_problems=500)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = SDARConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
        rope_theta=10_000.0,
        tie_word_embeddings=True,
        initializer_range=0.2,
        block_size=4,
        mask_token_id=tokenizer.mask_token_id,
    )
    SDARForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def trajectories(model_folder, tmp_path_factory):
    """Stage 2's output: the model's own decoded responses, some stopped and some cut."""
    from t3d.prompts import build_prompt
    from t3d.sdar.checkpoint import load_model, load_tokenizer

    model, tokenizer = load_model(model_folder), load_tokenizer(model_folder)
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

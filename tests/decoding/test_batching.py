"""The built-in teacher, as it is used: single precision, temperature 0.1."""

import itertools
from pathlib import Path

import pytest
import torch

from t3d.decoding import DecodingConfig, decode
from t3d.prompts import build_prompt
from t3d.sdar.checkpoint import default_stop_ids, load_decoder, load_model_config, load_tokenizer
from t3d.toy.problems import generate

TEACHER = Path(__file__).parents[2] / "t3d/toy/teacher"


@pytest.mark.slow
@pytest.mark.parametrize("steps", [4, 1])
def test_the_teachers_responses_do_not_depend_on_what_is_decoded_beside_them(steps: int) -> None:
    model, tokenizer = load_decoder(TEACHER, "auto", torch.device("cpu")), load_tokenizer(TEACHER)
    prompts = [build_prompt(tokenizer, problem, "math")[1] for problem in itertools.islice(generate("test"), 60)]
    config = DecodingConfig(
        load_model_config(TEACHER).mask_token_id,
        4,
        steps,
        max_new_tokens=96,
        temperature=0.1,
        stop_ids=default_stop_ids(TEACHER, tokenizer),
        record=("logprob",),
    )
    together = decode(model, prompts, config, max_active=60)
    assert sum(trajectory.finish_reason == "stop" for trajectory in together) > 50
    for max_active in (1, 7):
        # Recorded values too: the numbers agree to the last bit, not only the tokens drawn from them.
        assert decode(model, prompts, config, max_active=max_active) == together

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from t3d.config import DecodeConfig, load_config
from t3d.sdar import SDARConfig, SDARForCausalLM
from t3d.toy.base import save_base
from t3d.toy.problems import generate


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """A model folder with TinyMath's tokenizer and random weights, shared by the whole session."""
    folder = tmp_path_factory.getbasetemp() / "checkpoint"
    if not folder.exists():
        save_base(folder)
        shape = {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
        }
        config = SDARConfig.from_pretrained(folder, head_dim=16, initializer_range=0.3, **shape)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            SDARForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Path:
    """Ten TinyMath problems."""
    path = tmp_path_factory.getbasetemp() / "TinyMath.json"
    problems = list(itertools.islice(generate("test"), 10))
    for problem in problems:
        del problem["answer"]
    path.write_text(json.dumps(problems))
    return path


@pytest.fixture
def settings(checkpoint, dataset, tmp_path) -> Callable[..., DecodeConfig]:
    """Builds a configuration that decodes a few tokens of each problem, with overrides."""

    def build(*overrides: str) -> DecodeConfig:
        arguments = [
            f"experiment.project={tmp_path}",
            f"evaluation.checkpoint_path={checkpoint}",
            f"evaluation.eval_dataset={dataset}",
            "rollout.max_token=14",
            "rollout.denoising_steps_per_block=2",
            "rollout.temperature=0.7",
            "rollout.device=cpu",
            *overrides,
        ]
        return load_config(DecodeConfig, arguments, "", "")

    return build

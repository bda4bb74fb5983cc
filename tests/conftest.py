import itertools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxtyping import install_import_hook

# Before anything imports t3d: under pytest every call is checked against the annotations of all that takes
# tensors. (What reads files checks its own input, and is tested with values that its annotations exclude.)
# The hook finds modules on sys.path alone, where an editable installation need not have put the repository.
sys.path.insert(0, str(Path(__file__).parents[1]))
TENSOR_MODULES = ("sdar", "sampling", "remasking", "decoding", "objectives", "training")
install_import_hook(
    [f"t3d.{module}" for module in TENSOR_MODULES],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)

from t3d.entry import reproducible_products  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402

reproducible_products()  # as the entry scripts do, before the first product

from t3d.config import EvalConfig, load_config  # noqa: E402
from t3d.sdar import SDARConfig, SDARForCausalLM, SDARMoeConfig, SDARMoeForCausalLM  # noqa: E402
from t3d.toy.base import save_base  # noqa: E402
from t3d.toy.problems import generate  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def cache_root(tmp_path_factory) -> None:
    """Caches of the tests and of the processes that they start lie with their other files."""
    os.environ["T3D_CACHE_ROOT"] = str(tmp_path_factory.getbasetemp() / "cache")


TINY: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "rope_theta": 10_000.0,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
    "block_size": 4,
    "mask_token_id": 47,
    "bos_token_id": None,
    "eos_token_id": None,
}
EXPERTS: dict[str, Any] = {
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 20,
    "norm_topk_prob": True,
}


def make_tiny_config(**changes: Any) -> SDARConfig:
    return SDARConfig(**(TINY | changes))


def make_tiny_model(seed: int = 0, **changes: Any) -> SDARForCausalLM:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SDARForCausalLM(make_tiny_config(**changes)).eval()


def make_tiny_mixture(seed: int = 0, **changes: Any) -> SDARMoeForCausalLM:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SDARMoeForCausalLM(SDARMoeConfig(**(TINY | EXPERTS | changes))).eval()


@pytest.fixture(scope="session")
def tiny_model() -> SDARForCausalLM:
    """A random model of 48 tokens whose outputs are far from uniform; tests must not change its weights."""
    return make_tiny_model()


@pytest.fixture(scope="session")
def build_tiny_model() -> Callable[..., SDARForCausalLM]:
    """Builds a random model from a seed and changed configuration fields."""
    return make_tiny_model


@pytest.fixture(scope="session")
def build_tiny_mixture() -> Callable[..., SDARMoeForCausalLM]:
    """As `build_tiny_model`, a mixture of experts."""
    return make_tiny_mixture


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """A model folder with TinyMath's tokenizer and random weights, shared by the whole session."""
    folder = tmp_path_factory.getbasetemp() / "checkpoint"
    save_base(folder)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 2}
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
def settings(checkpoint, dataset, tmp_path) -> Callable[..., EvalConfig]:
    """Builds a configuration that decodes a few tokens of each problem, with overrides."""

    def build(*overrides: str) -> EvalConfig:
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
        return load_config(EvalConfig, arguments, "", "")

    return build

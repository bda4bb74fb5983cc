"""A model's weights, looked at without loading them: their files' headers against what its configuration asks for."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from t3d.sdar.configuration import SDARConfig
from t3d.sdar.mixture import build_network, stored_weights
from t3d.sdar.modeling import SDARForCausalLM

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
"""The file of weights, and the one that lists several."""


def weights_problem(folder: Path, config: SDARConfig) -> str | None:
    """What is wrong with the weights in `folder`; None if nothing is, as far as names and shapes show.

    A file that is missing, cut short or no such file (a pointer of git-lfs), and a weight that is missing or of another
    shape.
    """
    found: dict[str, list[int]] = {}
    try:
        files = _files(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{INDEX} that lists no files ({type(error).__name__}: {error})"
    if not files:
        return f"neither {SINGLE} nor {INDEX}"
    if missing := [name for name in files if not (folder / name).is_file()]:
        return f"{len(missing)} of {len(files)} files of weights missing, such as {missing[0]}"
    for name in files:
        try:
            with safe_open(folder / name, "pt") as file:
                found |= {weight: list(file.get_slice(weight).get_shape()) for weight in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            return f"{name}, which is not whole ({error})"
    for name, shape in _expected(config).items():
        stored = found.get(name, found.get(name.removeprefix("model.")))
        if stored != shape:
            return f"{name}: {shape} in config.json, {stored or 'nothing'} in the weights"
    return None


def empty_network(config: SDARConfig) -> SDARForCausalLM:
    """A network of this shape that takes no memory and computes nothing."""
    with torch.device("meta"):
        return build_network(config)


def _files(folder: Path) -> list[str]:
    """Names of the files of weights; transformers, too, looks at no index where there is a single one."""
    if (folder / SINGLE).is_file():
        return [SINGLE]
    if not (folder / INDEX).is_file():
        return []
    return sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))


def _expected(config: SDARConfig) -> dict[str, list[int]]:
    stored = stored_weights(empty_network(config).state_dict())
    expected = {name: list(weight.shape) for name, weight in stored.items()}
    if config.tie_word_embeddings:
        expected.pop("lm_head.weight", None)
    return expected

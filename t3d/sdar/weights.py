"""A model's weights, looked at without loading them: their files' headers against what its configuration asks for."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from t3d.sdar.configuration import SDARConfig
from t3d.sdar.mixture import build_network, stored_weights
from t3d.sdar.modeling import SDARForCausalLM

TYPES = ("F64", "F32", "F16", "BF16")
"""What safetensors calls the types that a network computes with."""
COMPUTED = ".rotary_emb.inv_freq"
"""The end of names that older releases of transformers stored and a network computes itself."""
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
"""The file of weights, and the one that lists several."""
PREFIX, HEAD, EMBEDDINGS = "model.", "lm_head.weight", "embed_tokens.weight"
"""What names of the network's weights begin with, in most files; the output head, and what it may be tied to."""


@dataclass(frozen=True)
class Stored:
    """What a file's header says of a weight: its file, its shape, and what safetensors calls its type."""

    file: str
    shape: list[int]
    kind: str


def weights_problem(folder: Path, config: SDARConfig) -> str | None:
    """What is wrong with the weights in `folder`; None if nothing is, as far as names, shapes and types show.

    A file that is missing, cut short or no such file (a pointer of git-lfs); a weight that is missing, of another shape
    or of no floating-point type; or one that the configuration has no place for, so that another network was meant.
    """
    try:
        files = _files(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{INDEX} that cannot be read ({type(error).__name__}: {error})"
    if not files:
        return f"neither {SINGLE} nor {INDEX}"
    if missing := [name for name in files if not (folder / name).is_file()]:
        return f"{len(missing)} of {len(files)} files of weights missing, such as {missing[0]}"
    found: dict[str, Stored] = {}
    for name in files:
        try:
            found |= _header(folder / name)
        except (SafetensorError, OSError) as error:
            return f"{name}, which is not whole ({error})"
    expected = _expected(config)
    return _difference(expected, found) or _surplus(folder, config, expected, found)


def _header(path: Path) -> dict[str, Stored]:
    """What a file holds, by names without `PREFIX`, which some files leave out."""
    found = {}
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118
            part = file.get_slice(name)
            found[name.removeprefix(PREFIX)] = Stored(path.name, list(part.get_shape()), part.get_dtype())
    return found


def _difference(expected: Mapping[str, list[int]], found: Mapping[str, Stored]) -> str | None:
    """The first weight that is not what the configuration asks for."""
    for name, shape in expected.items():
        stored = found.get(name.removeprefix(PREFIX))
        if stored is None or stored.shape != shape:
            return f"{name}: {shape} in config.json, {stored.shape if stored else 'nothing'} in the weights"
        if stored.kind not in TYPES:
            return f"{name} of the type {stored.kind}, none of {', '.join(TYPES)}"
    return None


def _surplus(
    folder: Path, config: SDARConfig, expected: Mapping[str, list[int]], found: Mapping[str, Stored]
) -> str | None:
    """What the configuration has no place for: layers beyond its number, biases, an adapter, scales of integers."""
    known = {name.removeprefix(PREFIX) for name in expected}
    unknown = sorted(name for name in found if name not in known and not name.endswith(COMPUTED))
    if config.tie_word_embeddings and HEAD in unknown:
        unknown.remove(HEAD)
        if not torch.equal(*(_tensor(folder, found, name) for name in (HEAD, EMBEDDINGS))):
            return f"{HEAD} that differs from the embeddings, which it is by tie_word_embeddings in config.json"
    return f"{len(unknown)} that config.json has no place for, such as {unknown[0]}" if unknown else None


def _tensor(folder: Path, found: Mapping[str, Stored], name: str) -> torch.Tensor:
    with safe_open(folder / found[name].file, "pt") as file:
        stored = name if name in file.keys() else PREFIX + name  # noqa: SIM118
        return file.get_tensor(stored)


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
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    files = sorted(set(index["weight_map"].values()))
    if "metadata" not in index:
        raise ValueError("no metadata, which transformers reads")
    return files


def _expected(config: SDARConfig) -> dict[str, list[int]]:
    stored = stored_weights(empty_network(config).state_dict())
    expected = {name: list(weight.shape) for name, weight in stored.items()}
    if config.tie_word_embeddings:
        expected.pop(HEAD, None)
    return expected

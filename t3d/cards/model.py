"""The model card of a checkpoint, made from what its run and its base's folder say."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from yaml import YAMLError

from t3d.cards.results import CardResult, eval_results, results_section, with_results
from t3d.errors import DataError
from t3d.objectives.registry import OBJECTIVES, WEIGHT_KEYS, Objective
from t3d.sdar.checkpoint import CARD, HUB_ID
from t3d.storage.experiments import recorded

log = logging.getLogger(__name__)

PLACE = "ORGANISATION/NAME"
"""Stands in a card for the repository, until the checkpoint is pushed to one."""

_CACHED = re.compile(r"models--(?P<owner>.+?)--(?P<name>.+)")

TAGS = ["t3d", "sdar", "block-diffusion", "diffusion-language-model", "distillation", "arxiv:2602.12262"]

LICENSE = ("license", "license_name", "license_link")
"""Fields of a card that say a licence."""

SETTINGS = {
    "training.block_size": "block size",
    "model.random_ratio": "random tokens among masked ones",
    "optimizer.params.learning_rate": "learning rate",
    "lr_scheduler.scheduler": "schedule",
    "lr_scheduler.params.warmup_steps": "warm-up steps",
    "training.max_gen_length": "longest response trained on (tokens)",
    "training.mixed_precision": "precision",
    "training.seed": "seed",
}
"""What a card tells of every run's configuration: key -> what it is called."""

TRACE_SETTINGS = {
    "training.mask_strategy": "states",
    "training.mask_ratios": "mask ratios",
    "training.mask_ratio_exponent": "mask ratio exponent",
}
DDO_SETTINGS = {
    "training.alpha": "alpha",
    "training.beta": "beta",
    "training.ddo_level": "likelihood ratios of",
    "training.fake_expectation": "fakes",
    "training.reference_temp": "temperature of the reference in fakes",
}
REFERENCE_SETTINGS = {
    "training.multi_round": "reference refreshed in rounds",
    "training.round_interval": "steps per round",
}
PATH_SETTINGS = {"training.path_k_steps": "tokens per coarse step", "training.path_loss": "path loss"}
"""Those that only some objectives heed."""
LORA_SETTINGS = {"model.lora_dropout": "LoRA dropout", "model.lora_targets": "LoRA layers"}
"""Those of a run that trains an adapter, beside its rank and alpha."""


@dataclass(frozen=True)
class Base:
    """The model that a checkpoint was trained from.

    Attributes:
        name: as people call it, without any path.
        hub_id: its repository on the hub; None if nothing tells.
        license: the fields that its own card says of its licence; empty if it says nothing.
    """

    name: str
    hub_id: str | None = None
    license: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """What a card tells of the training.

    Attributes:
        config: the resolved configuration, nested.
        step: global step of the checkpoint; None if unknown.
        num_steps: of the whole run; likewise.
        samples: training samples; likewise.
        samples_per_step: likewise.
    """

    config: dict[str, Any]
    step: int | None = None
    num_steps: int | None = None
    samples: int | None = None
    samples_per_step: int | None = None


def base_of(name: str, folder: Path) -> Base:
    """What is known of the base model `name`, whose files lie in `folder`."""
    hub_id = name if HUB_ID.fullmatch(name) and not Path(name).exists() else None
    for part in folder.resolve().parts:
        if cached := _CACHED.fullmatch(part):
            hub_id = f"{cached['owner']}/{cached['name']}"
    return Base((hub_id or folder.resolve().name).rpartition("/")[2], hub_id, _license(folder / CARD))


def _license(card: Path) -> dict[str, str]:
    """The fields of a card that say its licence; a card that cannot be read says nothing."""
    if not card.is_file():
        return {}
    try:
        data = read_card(card).data.to_dict()
    except DataError as error:
        log.warning("the licence is not known: %s", error)
        return {}
    return {name: data[name] for name in LICENSE if isinstance(data.get(name), str)}


def read_card(path: Path) -> ModelCard:
    """Reads a card.

    Raises:
        DataError: it is no text with a block of YAML at its head, or with none.
    """
    try:
        return ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=False)
    except (OSError, ValueError, YAMLError) as error:
        raise DataError(path, "a model card (Markdown, with YAML between --- at its head)", error) from error


def model_card(base: Base, run: Run, folder: Path, results: Sequence[CardResult] = ()) -> str:
    """The card's text.

    Args:
        base: see `Base`.
        run: see `Run`.
        folder: the checkpoint's, or its base's: its `config.json` tells how it loads elsewhere.
        results: evaluations of this checkpoint.
    """
    objective = recorded(run.config, "training.objective")
    tuned = bool(run.config) and not recorded(run.config, "model.random_init")
    name = base.name if objective is None else f"{base.name}-{objective}"
    fields: dict[str, Any] = {**(base.license if tuned else {}), **_index(name, results)}
    data = ModelCardData(
        base_model=base.hub_id if tuned else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=[*TAGS, *([f"objective:{objective}"] if objective else [])],
        **fields,
    )
    parts = [
        f"# {_title(base, run)}",
        _introduction(base, run, tuned),
        "## How it was made",
        _table(base, run),
        "## Results",
        results_section(results),
        "## How to load it",
        _loading(folder),
        "## Licence",
        _licence_text(base, tuned),
        "## Cite",
        "T3D: Few-Step Diffusion Language Models via Trajectory Self-Distillation with Direct Discriminative"
        " Optimization, [arXiv:2602.12262](https://arxiv.org/abs/2602.12262).",
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"


def pushed_card(card: ModelCard, repository: str, results: Sequence[CardResult], license_id: str | None) -> str:
    """A checkpoint's card as it is pushed: with the repository's name, and with results where some are given.

    All else stays as it is: people edit their cards.
    """
    body = card.text.replace(PLACE, repository)
    if results:
        body = with_results(body, results)
        for name, value in _index(repository.rpartition("/")[2], results).items():
            card.data[name] = value
    if license_id is not None:
        card.data["license"] = license_id
    return f"---\n{card.data.to_yaml()}\n---\n\n{body.strip()}\n"


def _index(name: str, results: Sequence[CardResult]) -> dict[str, Any]:
    return {"model_name": name, "eval_results": eval_results(results)} if results else {}


def _title(base: Base, run: Run) -> str:
    if not run.config:
        return base.name
    return f"{base.name}, trained with t3d ({recorded(run.config, 'training.objective')})"


def _introduction(base: Base, run: Run, tuned: bool) -> str:
    link = f"[{base.hub_id}](https://huggingface.co/{base.hub_id})" if base.hub_id else base.name
    origin = f", trained from {link} to decode in few denoising steps" if tuned else ""
    if run.config and not tuned:
        origin = f", trained from random weights in the shape of {link}"
    return (
        f"A block-diffusion language model{origin}. Logits at a position predict that position's token; blocks are"
        " counted from position 0."
    )


def _table(base: Base, run: Run) -> str:
    """How the checkpoint was made."""
    if not run.config:
        return "Not recorded."
    data = recorded(run.config, "dataset.optimization_data")
    step = run.step if run.num_steps is None or run.step is None else f"{run.step} of {run.num_steps}"
    rows = [
        ("base model", base.hub_id or base.name),
        ("training data", None if data is None else Path(str(data)).name),
        ("training samples", run.samples),
        ("global step", step),
        ("samples per step", run.samples_per_step),
        *_settings(run.config),
    ]
    lines = [f"| {name} | {value} |" for name, value in rows if value is not None]
    return "\n".join(["| | |", "|---|---|", *lines])


def _settings(config: dict[str, Any]) -> list[tuple[str, Any]]:
    """What matters of a configuration: the objective, and the settings that it heeds."""
    name = recorded(config, "training.objective")
    objective = OBJECTIVES.get(name, Objective("unknown"))
    path, certainty, soft = (objective.weight(term, recorded(config, key)) for key, term in WEIGHT_KEYS.items())
    ranking = recorded(config, "training.ranking_weight")
    rank, alpha = recorded(config, "model.lora_rank"), recorded(config, "model.lora_alpha")
    heeded = {
        **SETTINGS,
        **(TRACE_SETTINGS if objective.states == "trace" else {}),
        **(DDO_SETTINGS if objective.ddo else {}),
        **(REFERENCE_SETTINGS if objective.ddo or soft else {}),
        **(PATH_SETTINGS if path or soft or ranking else {}),
        **(LORA_SETTINGS if rank else {}),
    }
    settings = [(title, recorded(config, key)) for key, title in heeded.items()]
    weights = [
        ("weight of the path loss", path or None),
        ("weight of the certainty term", certainty or None),
        ("weight of soft targets", soft or None),
        ("weight of the ranking term", ranking or None),
    ]
    adapter = [("LoRA rank", rank), ("LoRA alpha", 2.0 * rank if alpha is None else alpha)] if rank else []
    return [("objective", name), *settings, *adapter, *weights]


def _loading(folder: Path) -> str:
    text = f"""With t3d, by name in every command:

```bash
python eval.py config=configs/eval.yaml evaluation.checkpoint_path={PLACE} evaluation.eval_dataset=MATH500 \\
    rollout.block_size=4 rollout.denoising_steps_per_block=1
```

and in Python, where importing `t3d.sdar` registers the model with transformers' Auto classes:

```python
import t3d.sdar
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{PLACE}")
tokenizer = AutoTokenizer.from_pretrained("{PLACE}")
```"""
    if not _has_remote_code(folder):
        return text
    return f"""{text}

Without t3d, with the modelling code that the base model brings along:

```python
model = AutoModelForCausalLM.from_pretrained("{PLACE}", trust_remote_code=True)
```

Engines that read the base model (SGLang, LMDeploy, JetEngine) read this one: only the weights differ."""


def _has_remote_code(folder: Path) -> bool:
    path = folder / "config.json"
    return path.is_file() and "auto_map" in json.loads(path.read_text(encoding="utf-8"))


def _licence_text(base: Base, tuned: bool) -> str:
    if not tuned:
        return "Not stated."
    if not base.license:
        return f"That of the base model, {base.hub_id or base.name}; its folder does not say which."
    return f"That of the base model: {base.license.get('license_name', base.license.get('license'))}."

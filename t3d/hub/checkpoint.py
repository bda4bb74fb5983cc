"""A checkpoint as a model on the hub."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import ModelCard

from t3d.cards.model import TAGS, Run, base_of, model_card, pushed_card, read_card
from t3d.cards.results import CardResult
from t3d.errors import CheckpointError, DataError
from t3d.hub.private import check_text, check_values, without_local_names
from t3d.hub.upload import Upload
from t3d.sdar.adapter import CONFIG, WEIGHTS
from t3d.sdar.adapter import FOLDER as ADAPTER
from t3d.sdar.checkpoint import CARD, load_model_config
from t3d.storage.experiments import newest_checkpoint, recorded, run_config
from t3d.storage.files import read_json
from t3d.storage.paths import existing_path

SHARED = re.compile(
    r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json|config\.json|generation_config\.json"
    r"|tokenizer\.(json|model)|(tokenizer_config|special_tokens_map|added_tokens|vocab|processor_config)\.json"
    r"|merges\.txt|chat_template\.(jinja|json)|[\w-]+\.py|(LICEN[CS]E|NOTICE)[\w.-]*"
    rf"|{ADAPTER}/({CONFIG}|{WEIGHTS})"
)
"""Files that belong to a model, or to the adapter that is merged into it and lies inside.

All others stay here: optimizer states, references, random states, logs.
"""

VOCABULARIES = ("tokenizer.json", "vocab.json", "merges.txt")
"""Files of texts that are tokens, not anybody's paths."""

STEP = re.compile(r"step-(\d+)")


def checkpoint_upload(path: str, repository: str, results: Sequence[CardResult], license_id: str | None) -> Upload:
    """Collects a checkpoint's files, with its card as `pushed_card` makes it.

    Raises:
        UserError: no model folder, a card that cannot be read, or a path of this machine in a file.
    """
    folder = existing_path(newest_checkpoint(path))
    if not folder.is_dir():
        raise CheckpointError(path, "a model folder, such as <run>/ckpt/optimized", "no such folder")
    load_model_config(folder)
    names = sorted(str(one.relative_to(folder)) for one in folder.rglob("*") if one.is_file())
    chosen = [name for name in names if SHARED.fullmatch(name)]
    if not any(name.endswith(".safetensors") for name in chosen if "/" not in name):
        raise CheckpointError(folder, "weights (model*.safetensors)", "none")
    files: dict[str, Path | bytes] = {}
    notes = []
    for name in chosen:
        files[name], note = _shared_file(folder / name)
        notes += [note] if note else []
    card, note = _card(folder)
    notes += [note] if note else []
    text = pushed_card(card, repository, results, license_id)
    check_text(text, str(folder / CARD))
    left_out = [name for name in names if name not in chosen and name != CARD]
    return Upload(repository, "model", text, files, left_out, notes)


def _shared_file(path: Path) -> tuple[Path | bytes, str | None]:
    """The file, or its content without paths of this machine, and what was changed."""
    if path.suffix == ".safetensors" or path.name in VOCABULARIES or path.name == "tokenizer.model":
        return path, None
    if path.suffix != ".json":
        try:
            check_text(path.read_text(encoding="utf-8"), str(path))
        except UnicodeDecodeError as error:
            raise DataError(path, "text (UTF-8)", error) from error
        return path, None
    values = read_json(path)
    changed = without_local_names(values) if isinstance(values, dict) else None
    check_values(changed or values, str(path))
    if changed is None:
        return path, None
    content = json.dumps(changed, ensure_ascii=False, indent=2).encode() + b"\n"
    return content, f"{path.name}: the local path it was loaded from is replaced by its last part"


def _card(folder: Path) -> tuple[ModelCard, str | None]:
    """The checkpoint's card; a new one in place of its base's, which checkpoints once carried."""
    if not (folder / CARD).is_file():
        return ModelCard(_new_card(folder)), None
    card = read_card(folder / CARD)
    if TAGS[0] in (card.data.to_dict().get("tags") or ()):
        return card, None
    return ModelCard(_new_card(folder)), f"{CARD}: without the tag {TAGS[0]} it is the base model's; a new one is made"


def _new_card(folder: Path) -> str:
    """The card of a checkpoint that has none, from what its run says."""
    found = run_config(str(folder))
    if found is None:
        return model_card(base_of(str(folder), folder), Run({}), folder)
    base = str(recorded(found[1], "model.pretrained_model"))
    step = STEP.fullmatch(folder.name)
    run = Run(found[1], step=None if step is None else int(step[1]))
    return model_card(base_of(base, existing_path(base)), run, folder)

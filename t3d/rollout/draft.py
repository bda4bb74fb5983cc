"""Who drafts a rollout's steps (`rollout.draft`), opened and checked before anything is decoded."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from t3d.errors import CheckpointError
from t3d.sdar.configuration import SDARConfig
from t3d.sdar.opening import Checkpoint, open_checkpoint
from t3d.storage.fingerprint import model_digest

SELF = "self"
"""The model drafts for itself: what a forward predicts beyond the step it takes."""


def open_draft(name: str | None, model: Checkpoint) -> Checkpoint | None:
    """The student that `rollout.draft` names; None where the model drafts for itself, or nobody does.

    Raises:
        CheckpointError: no such model, or see `check_draft`.
    """
    if name is None or name == SELF:
        return None
    assert model.config.block_size is not None  # the checkpoint is opened
    student = open_checkpoint(name, model.config.block_size)
    check_draft(student.folder, student.config, model.folder, model.config)
    check_tokens(student.folder, student.tokenizer, model.folder, model.tokenizer)
    return student


def check_draft(student: Path | str, its: SDARConfig, model: Path | str, models: SDARConfig) -> None:
    """Checks that a student can draft whatever the model can decode.

    Raises:
        CheckpointError: another vocabulary, mask token or block size, or fewer positions.
    """
    for name in ("vocab_size", "mask_token_id", "block_size"):
        found, expected = vars(its)[name], vars(models)[name]
        if found != expected:
            raise _refusal(student, f"{name} {expected}, as {model}", found)
    if its.max_position_embeddings < models.max_position_embeddings:
        expected = f"max_position_embeddings of at least {models.max_position_embeddings}, as {model}"
        raise _refusal(student, expected, its.max_position_embeddings)


def check_tokens(
    student: Path | str, its: PreTrainedTokenizerBase, model: Path | str, models: PreTrainedTokenizerBase
) -> None:
    """Checks that every id is the same token to both.

    Raises:
        CheckpointError: one is not.
    """
    mine, theirs = (set(tokenizer.get_vocab().items()) for tokenizer in (its, models))
    if other := sorted(mine ^ theirs, key=lambda entry: (entry[1], entry[0])):
        raise _refusal(student, f"the tokens of {model}", f"another {other[0][0]!r} ({other[0][1]})")


def draft_digest(name: str | None, student: Checkpoint | None) -> str | None:
    """What stands for the draft in a fingerprint: responses do not depend on it, the forwards they count do."""
    return name if student is None else model_digest(student.folder)


def _refusal(student: Path | str, expected: str, found: Any) -> CheckpointError:
    return CheckpointError(f"rollout.draft, {student}", expected, found)

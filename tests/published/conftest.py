"""Tokenizers of published checkpoints: SDAR's own where it is at hand, and TinyMath's in its place."""

from pathlib import Path

import pytest

from .checkpoints import TOKENIZER


@pytest.fixture(params=["TinyMath", "SDAR"])
def tokenizer_folder(request: pytest.FixtureRequest, checkpoint: Path) -> Path:
    """A folder with a tokenizer."""
    if request.param == "TinyMath":
        return checkpoint
    if not TOKENIZER.is_dir():
        pytest.skip("needs shared/data/sdar-tokenizer")
    return TOKENIZER

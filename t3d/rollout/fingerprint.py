"""What a rollout file was made from: two runs with equal fingerprints give equal files."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

EDGE_BYTES = 1 << 20


def text_digest(value: Any) -> str:
    """Digest of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def model_digest(folder: Path) -> str:
    """Digest of a model folder: small files whole, weights by name, size, and first and last megabyte.

    The ends of a safetensors file hold its layout and its last tensor, which any training changes: reading
    gigabytes of weights again for each run is not worth the certainty.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if not path.is_file():
            continue
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}:".encode())
        with path.open("rb") as file:
            digest.update(file.read(EDGE_BYTES))
            if size > EDGE_BYTES:
                file.seek(max(EDGE_BYTES, size - EDGE_BYTES))
                digest.update(file.read())
    return digest.hexdigest()[:16]


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first entry in which two fingerprints differ, as text, or None."""
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            return f"{name} was {before.get(name)}, is {now.get(name)}"
    return None

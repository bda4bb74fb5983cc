"""Fingerprints of what work is made from: with equal ones, it gives the same again."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

EDGE_BYTES = 1 << 20
WHOLE_BYTES = 64 << 20
STRIDE_BYTES = 8 << 20
PAGE_BYTES = 4 << 10


def text_digest(value: Any) -> str:
    """Digest of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """Digest of all that a file holds."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def model_digest(folder: Path) -> str:
    """Digest of a model folder: files up to 64 MB whole, larger ones by name, size, ends and samples.

    Of a large file the first and last megabyte count, which hold its layout and last tensor, and 4 KiB in every
    8 MiB between, which meet every matrix of a large model: any training changes all of them, and reading
    gigabytes of weights again for each run is not worth more certainty.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if not path.is_file():
            continue
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}:".encode())
        with path.open("rb") as file:
            if size <= WHOLE_BYTES:
                digest.update(file.read())
                continue
            digest.update(file.read(EDGE_BYTES))
            for place in range(STRIDE_BYTES, size - EDGE_BYTES, STRIDE_BYTES):
                file.seek(place)
                digest.update(file.read(PAGE_BYTES))
            file.seek(size - EDGE_BYTES)
            digest.update(file.read())
    return digest.hexdigest()[:16]


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first entry in which two fingerprints differ, as text, or None."""
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            return f"{name} was {before.get(name)}, is {now.get(name)}"
    return None

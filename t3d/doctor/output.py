"""Where a command writes: whether it may, and whether there is room."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from t3d.doctor.finding import Finding
from t3d.doctor.machine import nearest_folder, size_of


def folder(path: Path, needed: int, what: str, cure: str, at_once: int = 0) -> Iterator[Finding]:
    """Whether `path` can be made and written to, and has room.

    Args:
        path: of the output; nothing is made.
        needed: bytes that the whole command writes, about.
        what: is written, in words.
        cure: for too little room.
        at_once: bytes without which not even the first of it can be written.
    """
    above = nearest_folder(path)
    blocked = next((place for place in (path.absolute(), *path.absolute().parents) if place.is_file()), None)
    if blocked is not None:
        yield Finding("error", "output", f"{path}: {blocked} is a file", "another experiment.output_dir or project")
        return
    if not os.access(above, os.W_OK | os.X_OK):
        yield Finding(
            "error", "output", f"{path}: {above} cannot be written to", "another experiment.output_dir or project"
        )
        return
    free = shutil.disk_usage(above).free
    text = f"{path}: {what}, about {size_of(needed)}; {size_of(free)} free"
    if free < at_once:
        yield Finding("error", "output", text, cure)
    elif free < needed:
        yield Finding("warning", "output", text, cure)
    else:
        yield Finding("ok", "output", text)

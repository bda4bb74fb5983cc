"""The floors of CONTRIBUTING.md: what may import what, read from the imports themselves."""

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOOR = re.compile(r"^(\d+)  (.+)$", re.MULTILINE)
FOLDERS = ("t3d", "sample", "train", "data", "bench")
FILES = [
    Path("eval.py"),
    *sorted(path.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")),
]
FILES.remove(Path("t3d/__init__.py"))  # hands out t3d.api when asked for it, and lies on no floor


def floors() -> dict[str, int]:
    """Reads the drawing: the floor of each room (a package of t3d, a module beside them, an entry)."""
    drawing = (ROOT / "CONTRIBUTING.md").read_text().split("```")[1]
    return {room: int(number) for number, rooms in FLOOR.findall(drawing) for room in rooms.split()}


def imports(path: Path) -> Iterator[str]:
    """Yields the modules of this project that a file imports, wherever in it."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            # `from package import name` reaches the module of that name where there is one.
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if source(name) else str(node.module) for name in inner]
        yield from {name for name in names if source(name)}


def source(module: str) -> Path | None:
    """The file of a module of this repository, or None."""
    place = Path(*module.split("."))
    found = [path for path in (place.with_suffix(".py"), place / "__init__.py") if (ROOT / path).is_file()]
    return found[0] if found else None


def room(path: Path) -> str:
    """What the drawing calls the place of a file: `t3d/decoding`, `t3d/prompts`, `sample`, `eval`."""
    parts = path.with_suffix("").parts
    return "/".join(parts[: 2 if parts[0] == "t3d" else 1])


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_file_imports_its_own_room_and_lower_floors(path):
    drawn = floors()
    for module in imports(path):
        above, below = room(path), room(source(module))
        found = f"{path} (floor {drawn[above]}) imports {module} (floor {drawn[below]})"
        assert above == below or drawn[below] < drawn[above], found


def test_no_file_imports_itself_around_a_corner():
    edges = {path: {source(module) for module in imports(path)} - {path} for path in FILES}
    list(TopologicalSorter(edges).static_order())  # raises CycleError with the circle


def test_the_drawing_names_every_room_and_no_other():
    assert floors().keys() == {room(path) for path in FILES}

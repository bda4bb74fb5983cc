"""The pages: links lead somewhere, functions exist, commands parse, and those that a CPU can run do."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from t3d.config import EvalConfig, SampleConfig, TrainConfig, load_config
from t3d.config.reference import reference
from t3d.reproduce import ReproduceConfig

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)")
BLOCK = re.compile(r"^```bash( run)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`((?:[a-z_0-9]+/)*[a-z_0-9]+\.py): ([A-Za-z_0-9, ]+)`")
SCHEMAS = {
    "sample/sdar_sample.py": SampleConfig,
    "sdar_sample.py": SampleConfig,
    "eval.py": EvalConfig,
    "train/self_ddo_sdar_full.py": TrainConfig,
    "t3d.reproduce": ReproduceConfig,
    "t3d.tables.meter": EvalConfig,
}


def blocks(page: Path, run: bool | None = None) -> list[str]:
    return [text for flag, text in BLOCK.findall(page.read_text()) if run is None or bool(flag) is run]


def commands(page: Path) -> list[list[str]]:
    """The words of every command of a page's blocks."""
    lines = "\n".join(blocks(page)).replace("\\\n", " ").splitlines()
    words = (shlex.split(part, comments=True) for line in lines for part in line.split("&&"))
    return [found for found in words if found]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), target


def test_functions_that_pages_name_exist():
    named = [(page, *found) for page in PAGES for found in CODE.findall(page.read_text())]
    assert len(named) > 10
    for page, file, names in named:
        path = next(path for path in (ROOT / "t3d" / file, ROOT / file) if path.exists())
        for name in names.split(", "):
            assert re.search(rf"^(def|class) {name}\b|^{name}\b.*=", path.read_text(), re.MULTILINE), (page, file, name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_keys_of_commands_are_known(page, monkeypatch):
    """Every command that takes configuration is read as the script would read it; no file that it names is opened."""
    written = {f"config={name}" for name in re.findall(r"^cat > (\S+)", page.read_text(), re.MULTILINE)}
    for words in commands(page):
        program = next((word for word in words if word in SCHEMAS), None)
        if program is None or written & {*words}:  # what reads a file that the page writes is run below
            continue
        monkeypatch.chdir(ROOT / "sample" if program == "sdar_sample.py" else ROOT)
        given = [word for word in words[words.index(program) + 1 :] if "=" in word and word != "--dry-run"]
        load_config(SCHEMAS[program], given, "", "")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_scripts_and_modules_of_commands_exist(page):
    for words in commands(page):
        for word, following in zip(words, [*words[1:], ""], strict=True):
            if word.startswith("-"):
                continue
            if following.endswith(".py") and word.startswith("python"):
                assert any((ROOT / folder / following).exists() for folder in ("", "sample", "data")), following
        if "-m" in words and (module := words[words.index("-m") + 1]).startswith("t3d"):
            path = ROOT / module.replace(".", "/")
            assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


def test_the_page_of_keys_is_that_of_the_declarations():
    assert (ROOT / "docs/config.md").read_text() == reference(), "python -m t3d.config.reference > docs/config.md"


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, run=True)], ids=lambda page: page.name)
def test_what_a_cpu_can_run_runs(page, tmp_path):
    """The blocks marked `bash run`, one after the other, as somebody in a checkout's root would give them."""
    for name in ("t3d", "configs", "sample", "train", "data", "eval.py", "bench"):
        (tmp_path / name).symlink_to(ROOT / name)
    programs = Path(sys.executable).parent
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{programs}:{os.environ['PATH']}"}
    for block in blocks(page, run=True):
        ended = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, block + ended.stderr[-3000:]

import sys
from importlib.machinery import ModuleSpec

import pytest

from t3d.arguments import ArgumentParser
from t3d.commands.push import main as push
from t3d.hub.__main__ import main as push_both


def test_help_shows_the_defaults_that_say_something():
    parser = ArgumentParser("purpose", "example")
    parser.add_argument("--model", default=None, help="what to load (default: the file's)")
    parser.add_argument("--yes", action="store_true", default=False, help="do it")
    parser.add_argument("--results", nargs="+", default=[], help="files")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    text = parser.format_help()
    assert "(default: 0)" in text
    assert not any(silent in text for silent in ("default: None", "default: False", "default: []"))


@pytest.mark.parametrize(
    ("first", "module", "told"),
    [
        ("/x/t3d/hub/__main__.py", "t3d.hub.__main__", "python -m t3d.hub"),
        ("/x/t3d/tables/compare.py", "t3d.tables.compare", "python -m t3d.tables.compare"),
        ("t3d push", "t3d.__main__", "t3d push"),
        ("/x/data/rename_key.py", None, "rename_key.py"),
    ],
)
def test_a_parser_is_called_what_the_user_called(monkeypatch, first, module, told):
    monkeypatch.setattr(sys, "argv", [first])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None if module is None else ModuleSpec(module, None))
    assert ArgumentParser("purpose", "example").prog == told


@pytest.mark.parametrize("main", [push_both, push])
def test_push_is_asked_for_once(main, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["t3d push"])
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert "usage: t3d push [-h]" in shown
    assert "{push}" not in shown

import pytest

from t3d.arguments import ArgumentParser


def test_help_shows_the_defaults_that_say_something():
    parser = ArgumentParser("purpose", "example")
    parser.add_argument("--model", default=None, help="what to load (default: the file's)")
    parser.add_argument("--yes", action="store_true", default=False, help="do it")
    parser.add_argument("--results", nargs="+", default=[], help="files")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    text = parser.format_help()
    assert "(default: 0)" in text
    assert not any(silent in text for silent in ("default: None", "default: False", "default: []"))


@pytest.mark.parametrize("run", ["t3d.hub.__main__", "t3d.commands.push"])
def test_push_is_asked_for_once(run, capsys):
    from importlib import import_module

    with pytest.raises(SystemExit):
        import_module(run).main(["--help"])
    shown = capsys.readouterr().out
    assert "usage: t3d push [-h]" in shown
    assert "{push}" not in shown

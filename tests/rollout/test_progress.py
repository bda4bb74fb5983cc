import sys

from tqdm import tqdm

from t3d.rollout.job import Request
from t3d.rollout.progress import Progress
from t3d.rollout.worker import Done


def done(number: int, tokens: int = 10, forwards: int = 5, seconds: float = 1.0, error: str | None = None) -> Done:
    return Done(Request(number, number // 2, number, "", []), tokens, forwards, seconds, error)


def test_one_bar_counts_all_workers_and_tells_the_speed_of_all_together(capsys):
    with Progress(8, 3, 2) as progress:
        progress.add(done(3, seconds=1.0))
        progress.add(done(4, seconds=4.0))  # of another worker, which is slower
        progress.add(done(5, seconds=2.0))
        progress.bar.refresh()
    shown = capsys.readouterr().err
    assert "6/8" in shown
    assert "tok_forward=2.00" in shown
    assert "tok_s=8" in shown


def test_a_line_after_the_bar_stands_alone(capsys):
    for responses in (0, 2):
        with Progress(8, 0, 1) as progress:
            for number in range(responses):
                progress.add(done(number))
            tqdm.write("a warning in between", file=sys.stderr)
        sys.stderr.write("error: the last line\n")
        shown = capsys.readouterr().err
        assert shown.splitlines()[-1] == "error: the last line"
        assert ("rollout:" in shown) == bool(responses)


def test_the_first_failures_are_named_and_the_rest_only_counted(capsys, caplog):
    with Progress(60, 0, 2, hidden=True) as progress:
        for number in range(60):
            progress.add(done(number, tokens=0, forwards=0, error=None if number % 2 else f"reason {number}"))
    messages = [record.getMessage() for record in caplog.records]
    assert progress.failed == 30
    assert messages[:2] == ["failed: item 0, response 0: reason 0", "failed: item 1, response 0: reason 2"]
    assert len(messages) == 21
    assert messages[20] == "further failures are counted, and stand in the rollout file"
    assert capsys.readouterr().err == ""

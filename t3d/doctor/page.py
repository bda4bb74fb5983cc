"""The page: one line per finding, and the cure below it."""

from collections.abc import Iterator, Mapping, Sequence

from t3d.doctor.finding import Finding, counted

SUBJECT_WIDTH = 14
LEVEL_WIDTH = len("warning")


def render(title: str, sections: Mapping[str, Sequence[Finding]]) -> str:
    """The page as text, ending with what it comes to."""
    return "\n".join(_lines(title, sections)) + "\n"


def count(findings: Sequence[Finding], level: str) -> str:
    """How many findings of a level there are, in words: "no errors", "1 warning"."""
    number = sum(finding.level == level for finding in findings)
    return counted(number, level) if number else f"no {level}s"


def _lines(title: str, sections: Mapping[str, Sequence[Finding]]) -> Iterator[str]:
    yield title
    for name, findings in sections.items():
        if findings:
            yield f"{name}:"
        for finding in findings:
            yield f"  {finding.level:<{LEVEL_WIDTH}}  {finding.subject:<{SUBJECT_WIDTH}}  {_one_line(finding.text)}"
            if finding.cure:
                yield f"  {'':<{LEVEL_WIDTH}}  {'':<{SUBJECT_WIDTH}}  -> {_one_line(finding.cure)}"
    every = [finding for findings in sections.values() for finding in findings]
    yield f"{count(every, 'error')}, {count(every, 'warning')}"


def _one_line(text: str) -> str:
    return " ".join(text.split())

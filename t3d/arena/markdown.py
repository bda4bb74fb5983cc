"""How an arena's figures are written in Markdown."""

from t3d.arena.statistics import Estimate


def accuracy(found: Estimate) -> str:
    """In % ± its standard error."""
    return f"{100 * found.mean:.1f} ± {100 * found.stderr:.1f}"


def difference(found: Estimate | None) -> str:
    """In points with its 95 % interval, bold where that leaves out 0 and rests on enough seeds."""
    if found is None:
        return "-"
    text = f"{100 * found.mean:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
    return f"**{text}**" if found.is_clear else text


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table with a heading."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)

"""Trajectories as text, for a terminal without a browser."""

from collections.abc import Iterator

from t3d.viewer.pieces import PieceTable
from t3d.viewer.source import Response, Source
from t3d.viewer.statistics import Agreement, Order, agreement, reveal_order, steps_in_block

COLOURS = (34, 36, 32, 33, 35, 31, 94, 95)
"""ANSI colours of the steps of a block, from the first on."""


def text_page(sources: list[Source], pieces: PieceTable, num_problems: int, colours: bool) -> str:
    """The first responses, each token in the colour (or with the number) of its step in its block, and the figures."""
    lines: list[str] = []
    for source in sources:
        lines += [source.title, "  " + ", ".join(f"{name} {value}" for name, value in source.about)]
        for place, response in enumerate(source.responses[:num_problems], 1):
            lines += ["", f"{place}. {_one_line(response.problem)[:200]}", _head(response)]
            lines.append(_denoised(response, source.block_size, pieces, colours))
        lines += ["", *_order(reveal_order(source)), ""]
    if len(sources) > 1:
        lines += _agreement(agreement(*sources))
    return "\n".join(lines) + "\n"


def _head(response: Response) -> str:
    if response.trajectory is None:
        return f"  failed: {_one_line(str(response.error))}"
    verdict = {True: "right", False: "wrong", None: "not graded"}[response.correct]
    trajectory = response.trajectory
    forwards = f" {trajectory.num_forwards} forwards," if trajectory.num_forwards else ""  # 0: nobody counted them
    return (
        f"  {verdict}, {len(trajectory.response_ids)} tokens, {trajectory.num_steps} steps,"
        f"{forwards} ended by {trajectory.finish_reason}"
    )


def _denoised(response: Response, block_size: int, pieces: PieceTable, colours: bool) -> str:
    """Blocks in brackets; tokens in their step's colour, or with their step in front."""
    if response.trajectory is None:
        return ""
    blocks, steps = steps_in_block(response.trajectory, block_size)
    parts: list[str] = []
    for place, (block, step, piece) in enumerate(zip(blocks.tolist(), steps.tolist(), response.pieces, strict=True)):
        if place == 0 or block != blocks[place - 1]:
            parts.append("[" if place == 0 else "][")
        text = _printable(pieces.texts[piece])
        colour = COLOURS[(step - 1) % len(COLOURS)]
        parts.append(f"\x1b[{colour}m{text}\x1b[0m" if colours else f"{step}:{text} ")
    return "  " + "".join(parts) + "]"


def _order(order: Order) -> Iterator[str]:
    in_order = f"{100 * order.left_to_right:.1f} % with nothing hidden before them in their block"
    yield f"{order.tokens} tokens in {order.steps} steps; {in_order}"
    yield "share (%) of the tokens at each place of a block (rows) revealed in each of its steps (columns):"
    for place, shares in enumerate(order.by_place, 1):
        yield f"  {place:>3} " + "".join(f"{100 * share:7.1f}" for share in shares)


def _agreement(compared: Agreement) -> Iterator[str]:
    yield f"{compared.pairs} responses in both files, {100 * compared.same_share:.1f} % the same token for token"
    yield "same token (%), by the step of its block in which the first file revealed it:"
    yield "      " + "".join(f"{100 * share:7.1f}" for share in compared.by_step)


def _printable(text: str) -> str:
    """What a model wrote must not steer the terminal."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def _one_line(text: str) -> str:
    return _printable(" ".join(text.split()))

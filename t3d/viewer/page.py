"""The page: everything that it shows, as data, and one HTML file around it that fetches nothing."""

import base64
import hashlib
import json
from importlib.resources import files
from typing import Any

import jinja2
import numpy as np

from t3d.viewer.pieces import PieceTable
from t3d.viewer.source import Response, Source
from t3d.viewer.statistics import agreement, reveal_order


def render(sources: list[Source], pieces: PieceTable) -> str:
    """The HTML document for one rollout file, or for two side by side.

    Texts of models are untrusted: they travel as JSON without a "<", the script writes them as text alone, and the
    page's policy runs no other script than its own.
    """
    folder = files("t3d.viewer")
    style, script = (folder.joinpath(name).read_text("utf-8") for name in ("page.css", "page.js"))
    data = json.dumps(content(sources, pieces), ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(folder.joinpath("page.html.jinja").read_text("utf-8")).render(
        title=" | ".join(source.title for source in sources),
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        data=data,
    )


def content(sources: list[Source], pieces: PieceTable) -> dict[str, Any]:
    """What the script reads: short names, as a page holds thousands of responses."""
    problems: dict[str, int] = {}
    entries: dict[tuple[str, int, int], dict[str, Any]] = {}
    for side, source in enumerate(sources):
        for response in source.responses:
            problem = problems.setdefault(response.problem, len(problems))
            entry = entries.setdefault(
                response.key, {"q": problem, "n": response.number, "t": response.truth, "r": [None] * len(sources)}
            )
            entry["r"][side] = _response(response)
    compared = agreement(*sources) if len(sources) > 1 else None
    return {
        "sources": [
            {"title": source.title, "about": source.about, "block": source.block_size, "order": _order(source)}
            for source in sources
        ],
        "agreement": None
        if compared is None
        else {
            "share": [None if np.isnan(share) else float(share) for share in compared.by_step],
            "count": compared.by_step_count.tolist(),
            "same": compared.same_share,
            "first": compared.first_difference,
            "pairs": compared.pairs,
        },
        "pieces": pieces.texts,
        "special": sorted(pieces.special),
        "problems": list(problems),
        "entries": list(entries.values()),
    }


def _order(source: Source) -> dict[str, Any]:
    order = reveal_order(source)
    return {
        "place": order.by_place.round(4).tolist(),
        "perStep": order.per_step.tolist(),
        "left": order.left_to_right,
        "tokens": order.tokens,
        "steps": order.steps,
    }


def _response(response: Response) -> dict[str, Any]:
    trajectory = response.trajectory
    values: dict[str, Any] = {
        "v": response.correct,
        "e": response.extracted,
        "x": response.error,
        "l": _rounded(response.logprobs),
        "y": _rounded(response.entropies),
    }
    if trajectory is not None:
        values |= {
            "h": response.head,
            "p": len(trajectory.prompt_ids),
            "t": response.pieces,
            "s": trajectory.step_map,
            "f": trajectory.num_forwards,
            "n": trajectory.num_steps,
            "r": trajectory.finish_reason,
        }
    return {name: value for name, value in values.items() if value is not None}


def _rounded(figures: list[float] | None) -> list[float] | None:
    return None if figures is None else [round(figure, 3) for figure in figures]


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")

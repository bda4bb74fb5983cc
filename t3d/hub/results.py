"""Results files of evaluations, as a card shows them."""

from collections.abc import Sequence
from pathlib import Path

from t3d.cards.results import CardResult
from t3d.data.benchmarks import DATASETS
from t3d.errors import DataError
from t3d.evaluation.results import Decoding, Results, read_results
from t3d.rollout.draft import SELF
from t3d.storage.experiments import newest_checkpoint
from t3d.storage.paths import existing_path


def card_results(paths: Sequence[Path], kind: str, shared: str) -> list[CardResult]:
    """Reads results files of what is shared.

    Args:
        paths: the files.
        kind: checkpoint or rollouts.
        shared: its folder or file.

    Raises:
        DataError: one is none (file and field are named), or is of another checkpoint, or of other rollouts, which
            can be told as long as those are still where they were.
    """
    found = []
    for path in paths:
        results = read_results(path)
        named = results.checkpoint if kind == "checkpoint" else results.rollouts
        judged = None if named is None else _place(named)
        if judged is not None and judged != _place(shared):
            raise DataError(f"{path}, field {kind}", f"{shared}, which is to be shared", named)
        found.append(_card_result(results))
    return found


def _place(name: str) -> Path | None:
    """The file or folder that a name means; None where there is none."""
    path = existing_path(newest_checkpoint(name))
    return path.resolve() if path.exists() else None


def _card_result(results: Results) -> CardResult:
    known = DATASETS.get(results.dataset)
    return CardResult(
        dataset=results.dataset,
        dataset_id=None if known is None else known.repo_id,
        decoding=_words(results.decoding),
        n=results.metrics.n,
        acc=results.metrics.acc,
        stderr=results.metrics.stderr,
        tokens_per_step=results.metrics.tokens_per_step,
        tokens_per_forward=results.metrics.tokens_per_forward,
    )


def _words(decoding: Decoding) -> str:
    steps = decoding.denoising_steps
    parts = [
        None if decoding.block_size is None else f"block {decoding.block_size}",
        None if steps is None else f"{steps} step{'s' if steps > 1 else ''}",
        decoding.remasking_strategy,
        None if decoding.temperature is None else f"temperature {decoding.temperature:g}",
        None if decoding.draft is None else "drafted by itself" if decoding.draft == SELF else "drafted by a student",
    ]
    return ", ".join(part for part in parts if part is not None) or "unknown"

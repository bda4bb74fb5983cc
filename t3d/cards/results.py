"""Results of evaluations on a model card: a table for people, and the hub's model-index."""

from collections.abc import Sequence
from dataclasses import dataclass

from huggingface_hub import EvalResult

BEGIN, END = "<!-- results -->", "<!-- /results -->"
"""Comments around the results, so that they can be replaced and the rest of a card stays as somebody wrote it."""


@dataclass(frozen=True)
class CardResult:
    """One evaluation.

    Attributes:
        dataset: the data set's name.
        dataset_id: where it is on the hub; None if it is not.
        decoding: how it was decoded, in words: "block 4, 1 step, low_confidence_static, temperature 0.1".
        n: graded responses.
        acc: share of them that is right, 0-1.
        stderr: standard error of `acc`.
        tokens_per_step: all tokens over all denoising steps; None if unknown.
        tokens_per_forward: all tokens over all forwards; likewise.
    """

    dataset: str
    dataset_id: str | None
    decoding: str
    n: int
    acc: float
    stderr: float
    tokens_per_step: float | None = None
    tokens_per_forward: float | None = None


def results_section(results: Sequence[CardResult]) -> str:
    """The results as Markdown, between the comments that mark them."""
    if not results:
        return f"{BEGIN}\nNo results are recorded.\n{END}"
    lines = [
        "| data set | decoding | accuracy (%) | s.e. | n | tokens per step | tokens per forward |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in results:
        speeds = ["-" if speed is None else f"{speed:.2f}" for speed in (one.tokens_per_step, one.tokens_per_forward)]
        figures = [f"{100 * one.acc:.2f}", f"{100 * one.stderr:.2f}", str(one.n), *speeds]
        lines.append(f"| {' | '.join([one.dataset, one.decoding, *figures])} |")
    return "\n".join([BEGIN, *lines, "", "Accuracy with its standard error over problems; n: graded responses.", END])


def with_results(body: str, results: Sequence[CardResult]) -> str:
    """A card's text with these results in place of those that it has, or behind it where it has none."""
    section = results_section(results)
    before, begin, rest = body.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        return f"{body.rstrip()}\n\n## Results\n\n{section}\n"
    return f"{before}{section}{after}"


def eval_results(results: Sequence[CardResult]) -> list[EvalResult]:
    """The results as the hub's model-index holds them, accuracies in percent."""
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=one.dataset_id or one.dataset,
            dataset_name=one.dataset,
            metric_type="accuracy",
            metric_name=f"accuracy (%), {one.decoding}, n = {one.n}, s.e. {100 * one.stderr:.2f}",
            metric_value=round(100 * one.acc, 2),
        )
        for one in results
    ]

"""The card of a set of rollouts."""

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import DatasetCardData

from t3d.cards.results import CardResult, results_section

PARQUET = "data/train-00000-of-00001.parquet"
TAGS = ["t3d", "sdar", "block-diffusion", "trajectories", "arxiv:2602.12262"]

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def data_card(
    repository: str,
    file_name: str,
    records: int,
    responses: int,
    settings: Mapping[str, Any],
    license_id: str | None = None,
    results: Sequence[CardResult] = (),
    as_json: Sequence[str] = (),
) -> str:
    """The card's text.

    Args:
        repository: where the rollouts go.
        file_name: of the JSON file among them.
        records: problems.
        responses: to all of them.
        settings: how they were decoded: name -> value, as far as it is known.
        license_id: as the hub spells it; None if unknown.
        results: evaluations of these rollouts.
        as_json: columns of the Parquet file that hold JSON text, as their values have no one type.
    """
    data = DatasetCardData(
        license=license_id,
        task_categories=["text-generation"],
        tags=TAGS,
        size_categories=[next((name for limit, name in _SIZES if records < limit), "n>1M")],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": PARQUET}]}],
    )
    known = [f"| {name} | {value} |" for name, value in settings.items() if value is not None]
    note = f"\n\nColumns that hold JSON text: {', '.join(as_json)}." if as_json else ""
    parts = [
        f"# {repository.rpartition('/')[2]}",
        f"Responses of a block-diffusion language model with the denoising step that revealed each token:"
        f" {responses} responses to {records} problems.",
        "\n".join(["| | |", "|---|---|", *known]) if known else "How they were decoded is not recorded.",
        "## Fields",
        f"""Beside the problem's own, lists with one entry per response:

| field | meaning |
|---|---|
| `prompt`, `prompt_ids` | the prompt, and its token ids |
| `full_output` | the response's text |
| `response_ids` | its token ids, with the stop token if there was one |
| `step_map` | for each of them the denoising step that revealed it, from 1, counted over the response |
| `finish_reason` | stop or length |
| `num_steps`, `num_forwards` | denoising steps, and model forwards (0: unknown) |{note}""",
        "## How to use it",
        f"""```python
from datasets import load_dataset

rollouts = load_dataset("{repository}", split="train")
```

`{file_name}` is the same as t3d writes and reads it. To train on it:

```bash
hf download {repository} {file_name} --repo-type dataset --local-dir data
python train/self_ddo_sdar_full.py config=configs/ddo_sdar_full_self.yaml \\
    dataset.optimization_data=data/{file_name}
```""",
        *(["## Results", results_section(results)] if results else []),
        "## Cite",
        "T3D: Few-Step Diffusion Language Models via Trajectory Self-Distillation with Direct Discriminative"
        " Optimization, [arXiv:2602.12262](https://arxiv.org/abs/2602.12262).",
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"

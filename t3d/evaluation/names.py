"""What the files of an evaluation are called, so that none takes another one's place.

A name begins with the release's (`eval-<model>-<data set>`), goes on with what people look for, and ends with a digest
of all that decides the contents.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from t3d.config import EvalConfig, ExecuteConfig
from t3d.rollout.run import outputs_name
from t3d.storage.experiments import EXPERIMENTS
from t3d.storage.fingerprint import file_digest, text_digest

DIGEST_LETTERS = 8
GRADES_THE_SAME = ("num_chunk", "num_workers", "sandbox", "math_verify")
"""Keys of `execute` that decide how answers are graded, not what their grades are."""


def decoded_name(config: EvalConfig, fingerprint: Mapping[str, Any]) -> str:
    """Name of the rollouts that an evaluation decodes, from their settings and their job's fingerprint.

    For example `eval-optimized-MATH500-SDAR-4B-Chat-math-t3d-b4-s1-static-t0.1-seed0-1f0c9a3e`.
    """
    rollout = config.rollout
    words = [
        outputs_name(config),
        *_run_folder(str(config.evaluation.checkpoint_path)),
        f"b{rollout.block_size}-s{rollout.denoising_steps_per_block}",
        rollout.remasking_strategy.removeprefix("low_confidence_"),
        f"t{rollout.temperature:g}-seed{rollout.seed}",
        text_digest(dict(fingerprint))[:DIGEST_LETTERS],
    ]
    return "-".join(words)


def given_name(config: EvalConfig, rollouts: Path, dataset: str, checkpoint: str | None) -> str:
    """Name of the results of a given rollout file: the file's own, and a digest of what it holds and is said to be."""
    told = [file_digest(rollouts), dataset, checkpoint, config.evaluation.data_type, config.evaluation.limit]
    return f"{rollouts.stem.removeprefix('outputs-')}-{text_digest(told)[:DIGEST_LETTERS]}"


def graded_name(name: str, config: EvalConfig) -> str:
    """Name of the results of rollouts called `name`: the same, and a digest of how they are graded if not as usual."""
    settings = {"repair_known_bad": config.evaluation.repair_known_bad, **asdict(config.execute)}
    usual = {"repair_known_bad": True, **asdict(ExecuteConfig())}
    other = {key: value for key, value in settings.items() if key not in GRADES_THE_SAME and value != usual[key]}
    return f"{name}-graded-{text_digest(other)[:DIGEST_LETTERS]}" if other else name


def _run_folder(checkpoint: str) -> tuple[str, ...]:
    """What tells the run of a trained checkpoint (<run>/ckpt/<name>) from others: its folders under `EXPERIMENTS`."""
    folder = Path(checkpoint)
    if folder.parent.name != "ckpt":
        return ()
    run = folder.parent.parent.parts
    return run[run.index(EXPERIMENTS.name) + 1 :] if EXPERIMENTS.name in run else run[-1:]

"""Evaluation: decode a benchmark with a checkpoint, grade the answers, write results (or a whole table of them).

--dry-run beside the keys says whether the command would run here, and starts nothing.
"""

import sys

from t3d.doctor.command import DRY_RUN, dry_run

EXAMPLE = (
    "python eval.py config=configs/eval.yaml evaluation.checkpoint_path=/path/to/checkpoint"
    " evaluation.eval_dataset=MATH500 rollout.block_size=4 rollout.denoising_steps_per_block=1\n"
    "  t3d eval config=eval evaluation.checkpoint_path=/path/to/checkpoint evaluation.eval_dataset=MATH500"
)


def main(arguments: list[str]) -> None:
    """Parses the configuration and evaluates."""
    if DRY_RUN in arguments:
        dry_run("eval", arguments)
        return
    # Here, so that a dry run can tell of a library that does not load.
    from t3d.config import EvalConfig, load_config
    from t3d.evaluation.run import evaluate
    from t3d.tables.fill import run_table

    config = load_config(EvalConfig, arguments, __doc__ or "", EXAMPLE)
    if config.table.checkpoints:
        sys.stdout.write(run_table(config))
    else:
        evaluate(config)

"""Stage 1: decode a data set with a checkpoint and record the step at which each token was revealed.

--dry-run beside the keys says whether the command would run here, and starts nothing.
"""

from t3d.doctor.command import DRY_RUN, dry_run

EXAMPLE = (
    "python sdar_sample.py config=../configs/sdar_sample.yaml evaluation.eval_dataset=MATH_train"
    " rollout.block_size=4 rollout.denoising_steps_per_block=4\n"
    "  t3d sample config=sdar_sample evaluation.eval_dataset=MATH_train"
)


def main(arguments: list[str]) -> None:
    """Parses the configuration and decodes."""
    if DRY_RUN in arguments:
        dry_run("sample", arguments)
        return
    # Here, so that a dry run can tell of a library that does not load.
    from t3d.config import SampleConfig, load_config
    from t3d.rollout import rollout

    rollout(load_config(SampleConfig, arguments, __doc__ or "", EXAMPLE))

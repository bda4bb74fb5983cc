"""Stage 3: train a student on trajectories (or one of the baselines) through accelerate.

--dry-run beside the keys says whether the command would run here, and starts nothing.
"""

from t3d.entry import run_entry

from t3d.doctor.command import DRY_RUN, dry_run

EXAMPLE = (
    "accelerate launch --config_file accelerate_configs/1_node_8_gpus_deepspeed_zero1.yaml"
    " train/self_ddo_sdar_full.py config=configs/t3d.yaml"
)


def main(arguments: list[str]) -> None:
    """Parses the configuration and trains."""
    if DRY_RUN in arguments:
        dry_run("train", arguments)
        return
    # Here, so that a dry run can tell of a library that does not load.
    from t3d.config import TrainConfig, load_config
    from t3d.training.loop import train

    train(load_config(TrainConfig, arguments, __doc__ or "", EXAMPLE))


if __name__ == "__main__":
    run_entry(main)

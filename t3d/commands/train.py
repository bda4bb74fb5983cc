"""Stage 3: train a student on trajectories (or one of the baselines) through accelerate.

Several processes, installed from a wheel or not:
  accelerate launch --config_file "$(t3d configs accelerate_configs/1_node_8_gpus_deepspeed_zero1)" -m t3d train KEYS
  torchrun --nproc_per_node 8 -m t3d train KEYS

--dry-run beside the keys says whether the command would run here, and starts nothing.
"""

from t3d.doctor.command import DRY_RUN, dry_run

EXAMPLE = (
    "accelerate launch --config_file accelerate_configs/1_node_8_gpus_deepspeed_zero1.yaml"
    " train/self_ddo_sdar_full.py config=configs/t3d.yaml\n"
    "  t3d train config=toy/t3d dataset.optimization_data=teacher-TinyMath_train_renamed.json"
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

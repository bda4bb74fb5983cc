"""Stage 3, `t3d train`: trains a student on trajectories, or one of the baselines."""

from t3d.entry import run_entry

from t3d.commands.train import main

if __name__ == "__main__":
    run_entry(main)

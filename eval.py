"""Evaluation, `t3d eval`: decodes a benchmark with a checkpoint, grades the answers and writes results."""

from t3d.entry import run_entry

from t3d.commands.eval import main

if __name__ == "__main__":
    run_entry(main)

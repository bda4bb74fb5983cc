"""Stage 1, `t3d sample`: decodes a data set and records the step at which each token was revealed."""

from t3d.entry import run_entry

from t3d.commands.sample import main

if __name__ == "__main__":
    run_entry(main)

"""Stage 2, `t3d preprocess`: turns a rollout file into the file that training reads."""

from t3d.entry import run_entry

from t3d.commands.preprocess import main

if __name__ == "__main__":
    run_entry(main)

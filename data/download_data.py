"""`t3d download`: downloads one of the paper's data sets into the folder it is run from."""

from t3d.entry import run_entry

from t3d.commands.download import main

if __name__ == "__main__":
    run_entry(main)

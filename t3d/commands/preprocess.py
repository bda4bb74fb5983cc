"""Stage 2: turns a rollout file into the file that training reads."""

from pathlib import Path

from t3d.arguments import ArgumentParser
from t3d.data.preprocess import rename_answers


def main(argv: list[str]) -> None:
    """Reads `<model_name>-<dataset>.json` (or `.jsonl`) and writes `<model_name>-<dataset>_renamed.json` beside it.

    Args:
        argv: the command line's arguments.

    Raises:
        UserError: wrong arguments, an unreadable file, or one without a valid record.
    """
    parser = ArgumentParser(
        purpose="Check every record of the rollouts <model_name>-<dataset>.json (or .jsonl) in this folder, rename its "
        "full_output to answer and write <model_name>-<dataset>_renamed.json. Records with an invalid "
        "trajectory are left out and reported.",
        example="cd data && python rename_key.py --model_name SDAR-4B-Chat --dataset MATH_train",
    )
    parser.add_argument("--model_name", required=True, help="the model that made the rollouts")
    parser.add_argument("--dataset", required=True, help="the data set that it answered")
    arguments = parser.parse_args(argv)
    stem = f"{arguments.model_name}-{arguments.dataset}"
    lines = Path(f"{stem}.jsonl")
    source = lines if lines.exists() and not Path(f"{stem}.json").exists() else Path(f"{stem}.json")
    rename_answers(source, Path(f"{stem}_renamed.json"))

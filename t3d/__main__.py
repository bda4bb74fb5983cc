"""`t3d NAME ...` and `python -m t3d NAME ...`: one command for everything."""

from t3d.entry import run_entry

import difflib
import sys
from importlib import import_module

from t3d.errors import UserError

COMMANDS = {
    "download": ("t3d.commands.download", "fetch one of the paper's data sets"),
    "sample": ("t3d.commands.sample", "stage 1: decode problems, and record when each token was revealed"),
    "preprocess": ("t3d.commands.preprocess", "stage 2: check rollouts and turn them into training data"),
    "train": ("t3d.commands.train", "stage 3: train a student (several processes: accelerate launch -m t3d train)"),
    "eval": ("t3d.commands.eval", "decode a benchmark with a checkpoint, grade it, write results"),
    "table": ("t3d.commands.table", "evaluate many checkpoints and decodings, and lay them out as a table"),
    "meter": ("t3d.tables.meter", "what few-step decoding costs models, in nats and without labels"),
    "report": ("t3d.tables.report", "one HTML file of tables and results, with plots"),
    "view": ("t3d.viewer.__main__", "one HTML page that replays how responses were denoised"),
    "chat": ("t3d.chat.__main__", "talk with a model in the terminal"),
    "push": ("t3d.commands.push", "share a checkpoint or rollouts on the Hugging Face hub"),
    "import": ("t3d.data.import_rollouts", "read rollouts of JetEngine, SGLang, LMDeploy or the authors' release"),
    "convert": ("t3d.convert", "make an SDAR checkpoint, to be trained, of any Qwen3"),
    "merge": ("t3d.merge", "merge a LoRA adapter of peft's into the model that it was trained on"),
    "doctor": ("t3d.doctor.__main__", "what is here, what is missing, and whether a command would run"),
    "reproduce": ("t3d.reproduce", "all stages for one base model"),
    "caches": ("t3d.caches", "what lies under T3D_CACHE_ROOT, and how to prune it"),
    "configs": ("t3d.commands.configs", "the configurations that come with t3d, and their paths"),
}
"""Name -> the module whose `main(arguments)` runs it, imported only then; and what --help says of it."""


def main(arguments: list[str]) -> None:
    """Runs the command that the first argument names with the others.

    Raises:
        UserError: no such command; or the command's own.
    """
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help"):
        sys.stdout.write(overview())
        return
    if name not in COMMANDS:
        nearest = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0)[0]
        raise UserError("t3d", f"a command that `t3d --help` lists (nearest: {nearest})", name)
    sys.argv = [f"t3d {name}", *rest]  # argparse calls the command so in its help and its errors
    import_module(COMMANDS[name][0]).main(rest)


def overview() -> str:
    """The page that lists the commands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {purpose}" for name, (_, purpose) in COMMANDS.items()]
    usage = "usage: t3d COMMAND [config=FILE] [key=value ...]    (t3d COMMAND --help explains the rest)"
    return "\n".join([usage, "", *lines, ""])


def run() -> None:
    """The console command."""
    run_entry(main)


if __name__ == "__main__":
    run()

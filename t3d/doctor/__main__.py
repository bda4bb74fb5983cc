"""Will it run here?  One page about this machine and, with a configuration, about a command.

Each line is ok, a warning or an error with its cure; the exit status is 2 if there is an error.  Nothing is started,
downloaded or written.
"""

from t3d.entry import run_entry

from t3d.arguments import ArgumentParser
from t3d.doctor.command import KINDS, kind_of, report

EXAMPLE = "python -m t3d.doctor config=configs/eval.yaml evaluation.checkpoint_path=/path/to/checkpoint"


def main(arguments: list[str]) -> None:
    """Examines what the command line names."""
    parser = ArgumentParser(__doc__ or "", EXAMPLE)
    parser.add_argument(
        "--for", dest="kind", choices=KINDS, default=None, help="kind of command (default: by the keys)"
    )
    parser.add_argument("settings", nargs="*", default=[], help="config=FILE and key=value, as the command takes them")
    asked = parser.parse_args(arguments)
    kind = asked.kind
    if kind is None and asked.settings:
        from t3d.config import named_keys

        kind = kind_of(named_keys(asked.settings))
    report(kind, asked.settings)


if __name__ == "__main__":
    run_entry(main)

"""Shares a checkpoint, or rollouts, on the Hugging Face hub.

Without --yes nothing is sent: the files with their sizes, the repository and the card are shown.
HF_TOKEN and HF_ENDPOINT are honoured.
"""

from t3d.entry import run_entry

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from t3d.arguments import ArgumentParser
from t3d.errors import UserError
from t3d.hub.checkpoint import checkpoint_upload
from t3d.hub.results import card_results
from t3d.hub.rollouts import rollouts_upload
from t3d.hub.upload import check_repository, description, send

EXAMPLE = (
    "t3d push checkpoint experiments/SDAR-4B-Chat/math/t3d/ckpt/optimized me/SDAR-4B-T3D "
    "--results t3d/results/results-*.json"
)


def main(arguments: list[str]) -> None:
    """Pushes: the first argument says so.

    Raises:
        UserError: it says something else; or that of `push`.
    """
    action, *rest = arguments or ["--help"]
    if action not in ("push", "-h", "--help"):
        raise UserError("python -m t3d.hub", "push", action)
    push(rest if action == "push" else ["--help"])


def push(arguments: list[str]) -> None:
    """Tells what would be sent, or sends it.

    Raises:
        UserError: wrong arguments, or something that cannot be read or sent.
    """
    parser = ArgumentParser(__doc__ or "", EXAMPLE)
    parser.add_argument("kind", choices=("checkpoint", "rollouts"), help="what PATH is")
    parser.add_argument("path", help="model folder, or rollout file")
    parser.add_argument("repository", metavar="REPO", help="owner/name on the hub; made if missing")
    parser.add_argument("--results", type=Path, nargs="+", default=[], help="results-*.json to put on the card")
    parser.add_argument("--license", default=None, help="licence id, such as mit (default: the base model's, if known)")
    parser.add_argument("--private", action="store_true", default=False, help="make a new repository private")
    parser.add_argument("--message", default="Uploaded with t3d", help="of the commit")
    parser.add_argument("--yes", action="store_true", default=False, help="send it")
    options = parser.parse_args(arguments)
    repository = check_repository(options.repository)
    results = card_results(options.results, options.kind, options.path)
    with TemporaryDirectory() as scratch:
        if options.kind == "checkpoint":
            upload = checkpoint_upload(options.path, repository, results, options.license)
        else:
            upload = rollouts_upload(options.path, repository, results, options.license, Path(scratch))
        if not options.yes:
            sys.stdout.write(f"{description(upload, options.private)}\nnothing was sent: --yes sends it\n")
            return
        sys.stdout.write(f"{send(upload, options.private, options.message)}\n")


if __name__ == "__main__":
    run_entry(main)

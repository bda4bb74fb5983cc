"""Looks at rollouts: writes an HTML page that replays how responses were denoised, one file or two side by side."""

from t3d.entry import run_entry

import logging
import sys
from pathlib import Path

from t3d.arguments import ArgumentParser, count
from t3d.storage.files import atomic_writer
from t3d.storage.folders import make_folder
from t3d.viewer.page import render
from t3d.viewer.source import load_source, open_pieces
from t3d.viewer.terminal import text_page

log = logging.getLogger(__name__)

EXAMPLE = "python -m t3d.viewer demo/temp_data/outputs-eval-teacher-TinyMath_train.json -o page.html"


def main(arguments: list[str]) -> None:
    """Reads the files that the command line names, and writes the page."""
    parser = ArgumentParser(__doc__ or "", EXAMPLE)
    parser.add_argument("rollouts", type=Path, help="outputs-*.json, or graded-*.json, which knows verdicts too")
    parser.add_argument("other", type=Path, nargs="?", default=None, help="a second file, shown beside the first")
    parser.add_argument("-o", "--out", type=Path, default=Path("trajectories.html"), help="page to write")
    parser.add_argument(
        "--tokenizer", default=None, help="model folder or hub id (default: the one named beside the file)"
    )
    parser.add_argument("--limit", type=count, default=None, help="only the first N problems")
    parser.add_argument("--text", type=count, default=None, metavar="N", help="print N responses and figures, no page")
    options = parser.parse_args(arguments)
    paths = [path for path in (options.rollouts, options.other) if path is not None]
    pieces = open_pieces(paths[0], options.tokenizer)
    sources = [load_source(path, pieces, options.limit) for path in paths]
    if options.text is not None:
        sys.stdout.write(text_page(sources, pieces, options.text, colours=sys.stdout.isatty()))
        return
    page = render(sources, pieces)
    make_folder(options.out.parent)
    with atomic_writer(options.out) as file:
        file.write(page)
    log.info("%s: %d responses", options.out, sum(len(source.responses) for source in sources))


if __name__ == "__main__":
    run_entry(main)

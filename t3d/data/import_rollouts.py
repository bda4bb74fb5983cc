"""Brings other engines' rollouts into this project's format, checks them, and tells whether their step maps are right.

An engine's file is a JSON list, or JSON Lines, of what it returned.  Prompts are taken from it, from `prompt` or
`prompt_ids` beside each output, or are built from --dataset.
"""

from t3d.entry import run_entry

import sys
from dataclasses import replace

from t3d.arguments import ArgumentParser, count, temperature
from t3d.data.benchmarks import load_benchmark
from t3d.data.imports import FORMATS, Source, import_rollouts
from t3d.data.replay import RANKINGS
from t3d.data.verify import verify
from t3d.prompts import DATA_TYPES
from t3d.sdar.checkpoint import default_stop_ids, load_tokenizer, resolve_checkpoint
from t3d.storage.paths import find_data, user_path

EXAMPLE = (
    "python -m t3d.data.import_rollouts --format jetengine outputs.json -o data/SDAR-4B-Chat-MATH_train.json "
    "--dataset MATH_train --tokenizer JetLM/SDAR-4B-Chat --verify JetLM/SDAR-4B-Chat"
)


def main(arguments: list[str]) -> None:
    """Imports the file that the command line names, and verifies a sample of it where that is asked for."""
    parser = ArgumentParser(__doc__ or "", EXAMPLE)
    parser.add_argument("file", type=user_path, help="what the engine returned")
    parser.add_argument("--format", required=True, choices=FORMATS, help="the engine; release: the authors' files")
    parser.add_argument("-o", "--out", type=user_path, required=True, help="rollout file to write")
    parser.add_argument("--block-size", type=count, default=4, help="positions per block of the decoding")
    parser.add_argument("--tokenizer", default=None, help="model folder or hub id (default: that of --verify)")
    parser.add_argument("--dataset", default=None, help="data set that was answered, in the file's order")
    parser.add_argument("--data-type", default="math", choices=DATA_TYPES, help="its kind of problem")
    parser.add_argument("--skip-invalid", action="store_true", default=False, help="leave invalid responses out")
    parser.add_argument("--verify", default=None, metavar="MODEL", help="model that decoded: replay a sample with it")
    parser.add_argument("--sample", type=count, default=16, help="responses to replay")
    parser.add_argument("--rank-by", default="confidence", choices=RANKINGS, help="what the strategy ranked by")
    parser.add_argument("--temperature", type=temperature, default=1.0, help="the decoding's, for --verify")
    options = parser.parse_args(arguments)
    named = options.tokenizer or options.verify
    source = Source(options.format, options.block_size, options.data_type, skip_invalid=options.skip_invalid)
    if named is not None:
        folder = resolve_checkpoint(named)
        tokenizer = load_tokenizer(folder)
        source = replace(source, tokenizer=tokenizer, stop_ids=frozenset(default_stop_ids(folder, tokenizer)))
    items = None if options.dataset is None else load_benchmark(find_data(options.dataset), options.data_type)
    import_rollouts(options.file, options.out, source, items)
    if options.verify is not None:
        sys.stdout.write(verify(options.out, options.verify, options.sample, options.rank_by, options.temperature))


if __name__ == "__main__":
    run_entry(main)

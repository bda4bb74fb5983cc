"""Downloads one of the paper's data sets into the folder it is run from."""

import logging
from pathlib import Path

from t3d.arguments import ArgumentParser
from t3d.data.benchmarks import DATASETS
from t3d.data.download import download_dataset
from t3d.storage.paths import user_path

logger = logging.getLogger(__name__)


def main(argv: list[str]) -> None:
    """Downloads, checks and stores `<dataset>.json`.

    Args:
        argv: the command line's arguments.

    Raises:
        UserError: wrong arguments, or a data set that cannot be fetched, checked or stored.
    """
    parser = ArgumentParser(
        purpose="Download one of the paper's data sets from the Hugging Face hub, check every record and "
        "store it as <dataset>.json. HF_ENDPOINT and HF_HOME are honoured.",
        example="cd data && python download_data.py --dataset MATH_train",
    )
    hosted = [name for name, dataset in DATASETS.items() if dataset.repo_id]
    parser.add_argument("--dataset", required=True, choices=hosted, help="which data set")
    parser.add_argument("--output_dir", type=user_path, default=Path(), help="folder that receives the file")
    arguments = parser.parse_args(argv)
    logger.setLevel(logging.INFO)
    path, num_records = download_dataset(DATASETS[arguments.dataset], arguments.output_dir)
    logger.info("%s: %d records", path, num_records)

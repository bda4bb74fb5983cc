"""Fetching the hosted data sets."""

import logging
import os
from contextlib import suppress
from pathlib import Path

from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from huggingface_hub.utils import logging as hub_logging

from t3d.data.benchmarks import Dataset, load_benchmark
from t3d.errors import DataError, cause
from t3d.storage.files import atomic_writer

logger = logging.getLogger(__name__)

# The root error of the hub's HTTP library, which was requests, then httpx, then httpx2.
HTTP_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]
RESUMPTIONS = 2
"""The hub's client before 1.0 gives up at a connection that breaks; asked again, it goes on where it was."""

_FAILURES = (HTTP_ERROR, EntryNotFoundError, OSError)


def download_dataset(dataset: Dataset, folder: Path) -> tuple[Path, int]:
    """Downloads a data set from the hub, checks every record and puts it in `folder` as `<name>.json`.

    A file already there is replaced only by a whole and valid one. `HF_ENDPOINT`, `HF_HOME` and `HF_TOKEN`
    work as for every client of the hub; without the hub its cache answers.

    Args:
        dataset: a hosted entry of `DATASETS`.
        folder: where to put the file; created if missing.

    Returns:
        The file and its number of records.

    Raises:
        DataError: the data set is not hosted, cannot be fetched or written, or is invalid.
    """
    if dataset.repo_id is None or dataset.file_name is None:
        raise DataError(dataset.name, "a data set on the hub", "one that this project generates")
    # The warnings of its retries would come before the one line of the error.
    hub_logging.set_verbosity_error()
    try:
        cached = _fetch(dataset.repo_id, dataset.file_name)
    except _FAILURES as error:
        endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
        address = f"{endpoint}/datasets/{dataset.repo_id}/{dataset.file_name}"
        raise DataError(address, "a file that can be downloaded", cause(error)) from error
    num_records = len(load_benchmark(cached, dataset.data_type))
    return _install(cached, folder / f"{dataset.name}.json"), num_records


def _fetch(repo_id: str, file_name: str) -> Path:
    """Returns the newest copy of a file in the hub's cache, after downloading it if the hub answers."""
    try:
        # One attempt, where hf_hub_download would retry an unreachable hub in silence for 23 seconds.
        get_hf_file_metadata(hf_hub_url(repo_id, file_name, repo_type="dataset"))
    except _FAILURES as error:
        cached = try_to_load_from_cache(repo_id, file_name, repo_type="dataset")
        if isinstance(error, EntryNotFoundError) or not isinstance(cached, str):
            raise
        logger.warning("%s; taking the copy in the hub's cache, %s", cause(error), cached)
        return Path(cached)
    for _ in range(RESUMPTIONS):
        with suppress(OSError):
            return Path(hf_hub_download(repo_id, file_name, repo_type="dataset"))
    return Path(hf_hub_download(repo_id, file_name, repo_type="dataset"))


def _install(source: Path, target: Path) -> Path:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(target.parent, "a folder", error.strerror or error) from error
    with source.open(encoding="utf-8", newline="") as text, atomic_writer(target) as file:
        file.write(text.read())
    return target

"""Training samples on disk: an Arrow file per content, built once and mapped into memory by every process."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, Value
from datasets import Sequence as ListOf
from datasets.arrow_writer import ArrowWriter
from numpy.typing import NDArray

from t3d.errors import ConfigError, DataError
from t3d.storage.files import temporary_name
from t3d.storage.folders import make_folder
from t3d.storage.locks import mark_in_use, one_at_a_time
from t3d.training.states import TrainingSample

log = logging.getLogger(__name__)

FEATURES = Features(
    {
        "prompt_ids": ListOf(Value("int32")),
        "response_ids": ListOf(Value("int32")),
        "step_map": ListOf(Value("int32")),
        "ended": Value("bool"),
        "record": Value("string"),
    }
)
ROWS_PER_BATCH = 200
_CHUNK_BYTES = 1 << 20


class Samples:
    """The samples within the length limits, read one at a time.

    Attributes:
        lengths: tokens of each sample in the training layout, [prompt][clean response][noisy response].
        digest: of all that they were built from.
    """

    def __init__(self, path: Path, max_prompt_len: int, max_gen_length: int, text_length: int | None = None) -> None:
        """Maps the file that `build_once` wrote.

        Args:
            path: the Arrow file.
            max_prompt_len: samples with longer prompts are left out, and counted in the log.
            max_gen_length: responses are cut here, and counted in the log.
            text_length: texts (`TrainingSample.is_text`) are cut into pieces of so many tokens, each a sample; None:
                `max_gen_length`.

        Raises:
            DataError: no whole Arrow file.
            ConfigError: there are texts, and `text_length` is 0.
        """
        try:
            mark_in_use(path, self)
            self._rows = Dataset.from_file(str(path))
        except (OSError, pa.ArrowException) as error:
            raise DataError(path, "a whole cache file (remove it to have it built again)", error) from error
        prompts, responses = (
            pc.list_value_length(self._rows.data.column(name)).to_numpy().astype(np.int64)
            for name in ("prompt_ids", "response_ids")
        )
        self.digest = path.stem
        kept = np.flatnonzero(prompts <= max_prompt_len)
        self.num_left_out = len(prompts) - len(kept)
        if self.num_left_out:
            log.warning("left out %d samples: prompts over max_prompt_len = %d", self.num_left_out, max_prompt_len)
        is_text = ((prompts == 0) & self._rows.data.column("step_map").is_null().to_numpy())[kept]
        if num_cut := int((~is_text & (responses[kept] > max_gen_length)).sum()):
            log.warning("cut %d responses at max_gen_length = %d", num_cut, max_gen_length)
        limit, pieces = max_gen_length if text_length is None else text_length, np.ones_like(kept)
        if is_text.any():
            pieces[is_text] = num_pieces(responses[kept][is_text], limit)
        if num_cut := int((pieces > 1).sum()):
            counts = num_cut, int(pieces[pieces > 1].sum()), limit
            log.info("%d texts are cut into %d pieces of at most %d tokens, each a sample", *counts)
        # The row of each sample, and where in the row's response it starts and stops.
        self._kept = np.repeat(kept, pieces)
        self._starts = limit * (np.arange(pieces.sum()) - np.repeat(pieces.cumsum() - pieces, pieces))
        limits = np.repeat(np.where(is_text, limit, max_gen_length), pieces)
        self._stops = np.minimum(self._starts + limits, responses[self._kept])
        self.lengths: NDArray[np.int64] = prompts[self._kept] + 2 * (self._stops - self._starts)

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> TrainingSample:
        row, start, stop = (int(numbers[index]) for numbers in (self._kept, self._starts, self._stops))
        prompt, response, steps, ended = (
            self._rows.data.column(name)[row] for name in ("prompt_ids", "response_ids", "step_map", "ended")
        )
        return TrainingSample(
            prompt_ids=prompt.as_py(),
            response_ids=response.values[start:stop].to_pylist(),  # of a long text, no more than that is read
            step_map=steps.values[start:stop].to_pylist() if steps.is_valid else None,
            ended=ended.as_py() and stop == len(response),
        )

    def record(self, index: int) -> str:
        """File and record that a sample comes from, for messages."""
        return self._rows[int(self._kept[index])]["record"]

    def first_without_steps(self) -> int | None:
        """The first sample that is no trajectory, or None."""
        missing = self._rows.data.column("step_map").is_null().to_numpy()[self._kept]
        return int(missing.argmax()) if missing.any() else None


def num_pieces(lengths: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """Samples that texts of these many tokens are cut into.

    Raises:
        ConfigError: `limit` is 0.
    """
    if limit < 1:
        expected = "at least one block of a text (training.block_size, or a multiple of all block_size_choices)"
        raise ConfigError("training.max_gen_length", expected, "less")
    return -(-lengths // limit)


def build_once(
    folder: Path, sources: Sequence[Path], settings: Any, rows: Callable[[], Iterable[tuple[TrainingSample, str]]]
) -> Path:
    """The Arrow file of what `rows` yields, from `folder` if an earlier run with the same sources built it.

    However many processes ask, one builds and the others wait for it; where they cannot, each builds a file of its
    own, and the last one stays.  What a kill left half-written is never picked up (`python -m t3d.caches` removes it).

    Args:
        folder: of the cache.
        sources: files whose content `rows` reads.
        settings: a JSON value, all else that the rows depend on.
        rows: samples, each with the record that it comes from.

    Raises:
        DataError: from `rows`, or there is no room in `folder`, or no source to read.
    """
    target = make_folder(folder) / f"{_key(sources, settings)}.arrow"
    try:
        with one_at_a_time(target.with_suffix(".lock")):
            if not target.exists():
                log.info("building %s, once for this data", target)
                temporary = temporary_name(target)
                try:
                    _write(temporary, rows())
                    os.replace(temporary, target)
                finally:
                    temporary.unlink(missing_ok=True)
            target.touch()  # when it was used last
    except OSError as error:
        expected = "room for the training data (T3D_CACHE_ROOT says where)"
        raise DataError(folder, expected, error.strerror or error) from error
    return target


def _write(path: Path, rows: Iterable[tuple[TrainingSample, str]]) -> None:
    with (
        path.open("wb") as file,
        ArrowWriter(features=FEATURES, stream=file, writer_batch_size=ROWS_PER_BATCH) as writer,
    ):
        for sample, record in rows:
            writer.write({**vars(sample), "record": record})
        writer.finalize(close_stream=False)
        file.flush()
        os.fsync(file.fileno())


def _key(sources: Sequence[Path], settings: Any) -> str:
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for path in sources:
        try:
            with path.open("rb") as file:
                digest.update(f"\0{path.name}\0{os.fstat(file.fileno()).st_size}\0".encode())
                while chunk := file.read(_CHUNK_BYTES):
                    digest.update(chunk)
        except OSError as error:
            raise DataError(path, "a readable file", error.strerror or error) from error
    return digest.hexdigest()[:32]

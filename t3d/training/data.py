"""Training samples from data files: trajectories of a teacher, or real answers or texts for the SFT baseline."""

import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from t3d.config import DatasetConfig, TrainingConfig
from t3d.errors import DataError
from t3d.prompts import build_prompt, check_text, encode_answer, is_worded, prompts_of
from t3d.sdar.checkpoint import WEIGHTS, chat_end_id, text_end_id
from t3d.storage.files import iter_json_list
from t3d.storage.paths import DATASETS, cache_root
from t3d.training.samples import Samples, build_once
from t3d.training.states import TrainingSample
from t3d.trajectory import failures, record_trajectories

log = logging.getLogger(__name__)

FORMAT = 2
"""Part of the cache's key: raised whenever the same records give other samples."""


def load_samples(
    paths: Sequence[Path],
    tokenizer: PreTrainedTokenizerBase,
    dataset: DatasetConfig,
    config: TrainingConfig,
    vocab_size: int,
    needs_step_map: bool,
) -> Samples:
    """Opens the samples of the data files, which lie on disk: memory does not grow with their number.

    A record with a `step_map` is a trajectory (stage 1's or 2's output) and gives one sample per response that was
    decoded.  A record with `question` and `answer` alone is real data: its prompt is built as the decoder's would be,
    and the stop token is put after the answer.  One with `text` alone has no prompt: the end-of-text token is put after
    it, and one that is longer than `text_length` gives several samples, of which each but the last is whole blocks.
    The first run over the same content checks every record and keeps the samples under $T3D_CACHE_ROOT/datasets; the
    length limits apply when they are read.

    Args:
        paths: the JSON files.
        tokenizer: for real data, and for the release's files, which carry no token ids.
        dataset: the kind of problem, and how its prompts end.
        config: length limits.
        vocab_size: of the model; token ids are below it.
        needs_step_map: refuse records without one.

    Raises:
        DataError: an invalid record (file and index are named), or no sample within the limits.
        ConfigError: texts, and limits that not one block fits into.
    """
    prompts = prompts_of(dataset.data_type, dataset.prompts)
    settings = [FORMAT, dataset.data_type, dataset.prompt_style, *([prompts] if prompts else []), vocab_size]
    cache = build_once(
        cache_root() / DATASETS,
        [*paths, *_tokenizer_files(tokenizer)],
        settings,
        lambda: iter_samples(paths, tokenizer, dataset, vocab_size),
    )
    samples = Samples(cache, config.max_prompt_len, config.max_gen_length, text_length(config))
    folder = paths[0].parent
    if not len(samples):
        found = f"none ({samples.num_left_out} over training.max_prompt_len)"
        raise DataError(paths[0] if len(paths) == 1 else folder, "at least one training sample", found)
    if needs_step_map and (index := samples.first_without_steps()) is not None:
        found = "a record without step_map"
        raise DataError(f"{folder}/{samples.record(index)}", "a trajectory, as the objective needs", found)
    return samples


def _tokenizer_files(tokenizer: PreTrainedTokenizerBase) -> list[Path]:
    """What lies beside the weights: another tokenizer or chat template gives other samples."""
    folder = Path(tokenizer.name_or_path)
    return [path for path in sorted(folder.iterdir()) if path.is_file() and not WEIGHTS.fullmatch(path.name)]


def iter_samples(
    paths: Sequence[Path], tokenizer: PreTrainedTokenizerBase, dataset: DatasetConfig, vocab_size: int
) -> Iterator[tuple[TrainingSample, str]]:
    """Yields every sample of the files with the record that it comes from; see `load_samples`.

    Raises:
        DataError: an invalid record (file and index are named); raised when reached.
    """
    for path in paths:
        for index, record in enumerate(iter_json_list(path)):
            where = f"{path}, record {index}"
            _check_wording(record, where, dataset, warn=index == 0)
            for sample in _record_samples(record, where, tokenizer, dataset):
                highest = max([*sample.prompt_ids, *sample.response_ids])
                if highest >= vocab_size:
                    raise DataError(where, f"token ids below the model's vocab_size = {vocab_size}", highest)
                yield sample, f"{path.name}, record {index}"


def _record_samples(
    record: Any, where: str, tokenizer: PreTrainedTokenizerBase, dataset: DatasetConfig
) -> Iterator[TrainingSample]:
    if isinstance(record, dict) and "step_map" in record:
        if failed := failures(record):
            log.warning("%s: %d response(s) that failed to decode are left out", where, len(failed))
        for trajectory in record_trajectories(record, where, tokenizer, without=failed):
            yield TrainingSample(
                trajectory.prompt_ids,
                trajectory.response_ids,
                trajectory.step_map,
                ended=trajectory.finish_reason == "stop",
            )
        return
    if isinstance(record, dict) and "text" in record and "answer" not in record:
        text = _to_learn(record, "text", where)
        yield TrainingSample([], [*encode_answer(tokenizer, text), text_end_id(tokenizer)], None, ended=True)
        return
    if not isinstance(record, dict) or "answer" not in record:
        raise DataError(where, "a trajectory (step_map), a question with an answer, or a text", _shape(record))
    answer = _to_learn(record, "answer", where)
    try:
        _, prompt_ids = build_prompt(
            tokenizer, record, dataset.data_type, style=dataset.prompt_style, prompts=dataset.prompts
        )
    except DataError as error:
        raise DataError(f"{where}, {error.where}", error.expected, error.found) from error
    yield TrainingSample(prompt_ids, [*encode_answer(tokenizer, answer), chat_end_id(tokenizer)], None, ended=True)


def _to_learn(record: dict[str, Any], field: str, where: str) -> str:
    """What stands in a field, which is to be learnt."""
    text = check_text(record[field], f"{where}, field {field}")
    if not text.strip():
        raise DataError(
            f"{where}, field {field}", f"{'an' if field == 'answer' else 'a'} {field} to learn", f"{text!r}"
        )
    return text


def text_length(config: TrainingConfig) -> int:
    """Tokens of the pieces that texts are cut into: the most whole blocks, whatever their size, within the limit."""
    whole = math.lcm(*(config.block_size_choices or [config.block_size]))
    return config.max_gen_length // whole * whole


def _check_wording(record: Any, where: str, dataset: DatasetConfig, warn: bool) -> None:
    """Checks that a trajectory's prompt is worded as the configuration says, where it does, or warns.

    The student learns from the prompt of the rollout, whatever the wording; but evaluations compare theirs with what
    the run's configuration records.
    """
    if not isinstance(record, dict) or "step_map" not in record or not isinstance(record.get("prompt"), str):
        return
    if is_worded(record, dataset.data_type, dataset.prompts):
        return
    if prompts_of(dataset.data_type, dataset.prompts):
        expected = "a prompt worded as dataset.prompts says (evaluation.prompts of the rollout)"
        raise DataError(f"{where}, field prompt", expected, repr(record["prompt"][:200]))
    if warn:
        log.warning(
            "%s: its prompt has another wording than the built-in one; give it as dataset.prompts, or evaluations of"
            " this run cannot tell that they ask in other words",
            where,
        )


def _shape(record: Any) -> str:
    return f"fields {', '.join(map(str, record))}" if isinstance(record, dict) else type(record).__name__

"""Training samples from data files: trajectories of a teacher, or real answers for the SFT baseline."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from t3d.config import TrainingConfig
from t3d.errors import DataError
from t3d.files import iter_json_list
from t3d.prompts import build_prompt, check_text
from t3d.sdar.checkpoint import chat_end_id
from t3d.training.states import TrainingSample
from t3d.trajectory import record_trajectories

log = logging.getLogger(__name__)


def load_samples(
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    data_type: str,
    config: TrainingConfig,
    needs_step_map: bool,
) -> list[TrainingSample]:
    """Reads every sample of a data file.

    A record with a `step_map` is a trajectory (stage 2's output) and gives one sample per response.  A record
    with `question` and `answer` alone is real data: its prompt is built as the decoder's would be, and the stop
    token is put after the answer.

    Args:
        path: the JSON file.
        tokenizer: for real data, and for the release's files, which carry no token ids.
        data_type: math, code or option.
        config: length limits.
        needs_step_map: refuse records without one.

    Raises:
        DataError: an invalid record (its index is named), or no sample within the limits.
    """
    samples, too_long, cut = [], 0, 0
    for index, record in enumerate(iter_json_list(path)):
        for sample in _record_samples(record, f"{path}, record {index}", tokenizer, data_type):
            if needs_step_map and sample.step_map is None:
                found = "a record without step_map"
                raise DataError(f"{path}, record {index}", "a trajectory, as the objective needs", found)
            if len(sample.prompt_ids) > config.max_prompt_len:
                too_long += 1
                continue
            cut += len(sample.response_ids) > config.max_gen_length
            samples.append(_cut(sample, config.max_gen_length))
    if too_long:
        log.warning("left out %d samples: prompts over max_prompt_len = %d", too_long, config.max_prompt_len)
    if cut:
        log.warning("cut %d responses at max_gen_length = %d", cut, config.max_gen_length)
    if not samples:
        found = f"none ({too_long} over training.max_prompt_len)"
        raise DataError(path, "at least one training sample", found)
    return samples


def _record_samples(
    record: Any, where: str, tokenizer: PreTrainedTokenizerBase, data_type: str
) -> Iterator[TrainingSample]:
    if isinstance(record, dict) and "step_map" in record:
        for trajectory in record_trajectories(record, where, tokenizer):
            yield TrainingSample(
                trajectory.prompt_ids,
                trajectory.response_ids,
                trajectory.step_map,
                ended=trajectory.finish_reason == "stop",
            )
        return
    if not isinstance(record, dict) or "answer" not in record:
        raise DataError(where, "a trajectory (step_map), or a question with an answer", _shape(record))
    answer = check_text(record["answer"], f"{where}, field answer")
    _, prompt_ids = build_prompt(tokenizer, record, data_type)
    answer_ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    yield TrainingSample(prompt_ids, [*answer_ids, chat_end_id(tokenizer)], None, ended=True)


def _cut(sample: TrainingSample, limit: int) -> TrainingSample:
    if len(sample.response_ids) <= limit:
        return sample
    steps = sample.step_map and sample.step_map[:limit]
    return TrainingSample(sample.prompt_ids, sample.response_ids[:limit], steps, ended=False)


def _shape(record: Any) -> str:
    return f"fields {', '.join(map(str, record))}" if isinstance(record, dict) else type(record).__name__

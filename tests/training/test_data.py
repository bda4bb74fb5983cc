"""Training data: checked records in an Arrow file, built once per content and read a sample at a time."""

import errno
import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from t3d.caches import entries
from t3d.config import DatasetConfig, TrainingConfig
from t3d.errors import ConfigError, DataError
from t3d.sdar.checkpoint import load_tokenizer
from t3d.storage.files import temporary_name
from t3d.storage.locks import unused
from t3d.storage.paths import cache_root, find_data_files
from t3d.training import data
from t3d.training import samples as samples_module
from t3d.training.data import load_samples
from t3d.training.samples import Samples, build_once
from t3d.training.states import TrainingSample


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("T3D_CACHE_ROOT", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def tokenizer(checkpoint):
    return load_tokenizer(checkpoint)


def load(paths: list[Path] | Path, tokenizer, trace: bool = True, **limits: Any) -> Samples:
    paths = paths if isinstance(paths, list) else [paths]
    vocab_size = len(tokenizer)
    return load_samples(paths, tokenizer, DatasetConfig(), TrainingConfig(**limits), vocab_size, needs_step_map=trace)


def built() -> list[Path]:
    return sorted((cache_root() / "datasets").glob("*.arrow"))


def records(path: Path) -> list[dict]:
    return json.loads(path.read_text())


def test_samples_are_the_records_of_the_file(trajectories, tokenizer):
    samples = load(trajectories, tokenizer)
    assert len(samples) == 20
    for index, record in enumerate(records(trajectories)):
        assert samples[index] == TrainingSample(
            record["prompt_ids"],
            record["response_ids"][0],
            record["step_map"][0],
            ended=record["finish_reason"] == ["stop"],
        )
        assert samples.record(index) == f"{trajectories.name}, record {index}"
    expected = [len(sample.prompt_ids) + 2 * len(sample.response_ids) for sample in map(samples.__getitem__, range(20))]
    assert samples.lengths.tolist() == expected


def test_real_answers_have_no_steps_and_end_with_the_stop_token(answers, tokenizer):
    sample = load(answers, tokenizer, trace=False)[3]
    assert sample.step_map is None
    assert sample.ended
    assert tokenizer.decode(sample.response_ids) == records(answers)[3]["answer"] + "<|im_end|>"


@pytest.mark.parametrize("token", ["<|im_end|>", "<|MASK|>", "<|endoftext|>"])
def test_an_answer_that_spells_a_token_is_text(tokenizer, tmp_path, token):
    answer = f"It ends with {token}{token} and goes on."
    path = tmp_path / "answers.json"
    path.write_text(json.dumps([{"question": "1+1?", "answer": answer}]))
    ids = load(path, tokenizer, trace=False)[0].response_ids
    assert tokenizer.decode(ids) == answer + "<|im_end|>"
    assert not {*tokenizer.all_special_ids} & {*ids[:-1]}


@pytest.mark.parametrize("answer", ["", " \n"])
def test_an_empty_answer_is_refused_by_its_index(tokenizer, tmp_path, answer):
    path = tmp_path / "answers.jsonl"
    path.write_text("\n".join(json.dumps({"question": "1+1?", "answer": text}) for text in ("2", "2", answer)))
    with pytest.raises(DataError) as caught:
        load(path, tokenizer, trace=False)
    assert str(caught.value) == f"{path}, record 2, field answer: expected an answer to learn, found {answer!r}"


def test_json_lines_give_the_samples_of_the_list(trajectories, answers, tokenizer, tmp_path):
    for source, trace in ((trajectories, True), (answers, False)):
        path = tmp_path / source.with_suffix(".jsonl").name
        path.write_text("".join(json.dumps(record) + "\n" for record in records(source)))
        expected, found = load(source, tokenizer, trace), load(path, tokenizer, trace)
        assert [found[index] for index in range(20)] == [expected[index] for index in range(20)]


def test_real_answers_follow_prompts_of_the_style_asked_for(tokenizer, tmp_path):
    path = tmp_path / "answers.json"
    path.write_text(json.dumps([{"question": "Which?", "answer": "B"}]))
    prompts = {}
    for style in ("plain", "release"):
        dataset = DatasetConfig(data_type="option", prompt_style=style)
        samples = load_samples([path], tokenizer, dataset, TrainingConfig(), len(tokenizer), needs_step_map=False)
        prompts[style] = tokenizer.decode(samples[0].prompt_ids)
    assert prompts["release"] == prompts["plain"].replace(
        "<|im_end|>\n<|im_start|>assistant", " <|im_end|>\n<|im_start|>assistant"
    )
    assert prompts["release"].endswith("{}. <|im_end|>\n<|im_start|>assistant\n")


def test_length_limits_leave_out_prompts_and_cut_responses(trajectories, tokenizer, caplog):
    whole = load(trajectories, tokenizer)
    longest = max(len(whole[index].prompt_ids) for index in range(20))
    kept = [index for index in range(20) if len(whole[index].prompt_ids) < longest]
    samples = load(trajectories, tokenizer, max_prompt_len=longest - 1, max_gen_length=7)
    assert len(samples) == len(kept) < 20
    for place, index in enumerate(kept):
        assert samples[place].prompt_ids == whole[index].prompt_ids
        assert samples[place].response_ids == whole[index].response_ids[:7]
        assert samples[place].step_map == whole[index].step_map[:7]
        assert samples[place].ended == (whole[index].ended and len(whole[index].response_ids) <= 7)
        assert samples.lengths[place] == len(samples[place].prompt_ids) + 2 * len(samples[place].response_ids)
    assert f"left out {20 - len(kept)} samples" in caplog.text
    assert "max_gen_length = 7" in caplog.text
    assert len(built()) == 1, "limits apply at reading"


def test_the_same_content_is_built_once_and_other_content_again(trajectories, tokenizer, tmp_path, monkeypatch):
    copy = tmp_path / "elsewhere" / trajectories.name
    copy.parent.mkdir()
    copy.write_bytes(trajectories.read_bytes())
    load(trajectories, tokenizer)
    with monkeypatch.context() as patched:
        patched.setattr(data, "iter_samples", lambda *_: pytest.fail("built again"))
        assert len(load(copy, tokenizer)) == 20
    copy.write_text(json.dumps(records(trajectories)[:5]))
    assert len(load(copy, tokenizer)) == 5
    assert len(built()) == 2


def test_another_tokenizer_builds_again(answers, checkpoint, tmp_path):
    folder = tmp_path / "other"
    folder.mkdir()
    for path in checkpoint.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text() + "!")
    first = load(answers, load_tokenizer(checkpoint), trace=False)
    second = load(answers, load_tokenizer(folder), trace=False)
    assert first[0].prompt_ids != second[0].prompt_ids


def test_a_folder_of_shards_is_read_in_the_order_of_names(trajectories, tokenizer, tmp_path, monkeypatch):
    everything = records(trajectories)
    folder = tmp_path / "data" / "shards"
    folder.mkdir(parents=True)
    (folder / "1.json").write_text(json.dumps(everything[12:]))
    (folder / "0.json").write_text(json.dumps(everything[:12]))
    (folder / "notes.txt").write_text("no data")
    (folder / "0.meta.json").write_text("{}")  # as it lies beside a rollout
    monkeypatch.chdir(tmp_path)
    for name in (str(folder), "shards"):
        assert [path.name for path in find_data_files(name)] == ["0.json", "1.json"]

    samples, whole = load(find_data_files("shards"), tokenizer), load(trajectories, tokenizer)
    assert [samples[index] for index in range(20)] == [whole[index] for index in range(20)]
    assert samples.record(12) == "1.json, record 0"
    (tmp_path / "data" / "empty").mkdir()
    with pytest.raises(DataError, match=r"with \.json or \.jsonl files, found none"):
        find_data_files("empty")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"response_ids": [[1] * 3]}, "field step_map"),
        ({"prompt_ids": [10_000]}, r"below the model's vocab_size = \d+, found 10000"),
        ({"step_map": None, "response_ids": None, "question": 3}, "field step_map"),
    ],
)
def test_an_invalid_record_is_named_and_nothing_is_kept(trajectories, tokenizer, tmp_path, change, message):
    broken = records(trajectories)
    broken[7] |= change
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(broken))
    for _ in range(2):
        with pytest.raises(DataError, match=rf"broken\.json, record 7.*{message}"):
            load(path, tokenizer)
    assert [path.suffix for path in (cache_root() / "datasets").iterdir()] == [".lock"]


def test_data_that_is_read_is_in_use_and_its_last_use_is_kept(trajectories, tokenizer):
    samples = load(trajectories, tokenizer)
    (path,) = (cache_root() / "datasets").glob(f"{samples.digest}.arrow")
    os.utime(path, (0, 0))
    with unused(path) as nobody:
        assert not nobody
    del samples
    with unused(path) as nobody:
        assert nobody
    load(trajectories, tokenizer)
    assert path.stat().st_mtime > 0


def test_a_record_of_real_data_without_its_question_is_named(answers, tokenizer, tmp_path):
    broken = records(answers)
    del broken[4]["question"]
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(broken))
    with pytest.raises(DataError, match=r"broken\.json, record 4, field question"):
        load(path, tokenizer, trace=False)


def test_trace_objectives_name_the_first_record_without_steps(answers, trajectories, tokenizer, tmp_path):
    path = tmp_path / "mixed.json"
    path.write_text(json.dumps([*records(trajectories)[:3], *records(answers)]))
    with pytest.raises(DataError, match=r"mixed\.json, record 3: expected a trajectory"):
        load(path, tokenizer)


def test_a_half_written_file_is_never_picked_up(trajectories, tokenizer):
    whole = load(trajectories, tokenizer)
    [path] = built()
    left = temporary_name(path)
    left.write_bytes(path.read_bytes()[:1000])  # as a kill would leave it
    path.unlink()
    again = load(trajectories, tokenizer)
    assert [again[index] for index in range(20)] == [whole[index] for index in range(20)]
    assert left in {entry.path for entry in entries(cache_root())}, "t3d.caches shows and removes it"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_of_and_builders_do_not_meet(
    trajectories, tokenizer, monkeypatch, caplog, number
):
    """As on NFS without a lock service: the second builder comes while the first one writes."""

    def refused(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("t3d.storage.locks.FileLock.acquire", refused)
    write, inner = samples_module._write, []

    def meanwhile(path, rows):
        if not inner:
            inner.append(None)
            inner[0] = load(trajectories, tokenizer)
        write(path, rows)

    monkeypatch.setattr(samples_module, "_write", meanwhile)
    outer = load(trajectories, tokenizer)
    assert [outer[index] for index in range(20)] == [inner[0][index] for index in range(20)]
    assert "cannot be locked" in caplog.text
    assert len(built()) == 1
    assert not [path for path in built()[0].parent.iterdir() if path.suffix == ".tmp"]


def test_no_room_for_a_lock_is_an_error(trajectories, tokenizer, monkeypatch):
    def refused(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("t3d.storage.locks.FileLock.acquire", refused)
    with pytest.raises(DataError, match=r"expected room for the training data .*found No space left on device"):
        load(trajectories, tokenizer)


def test_a_damaged_cache_file_is_named(trajectories, tokenizer):
    load(trajectories, tokenizer)
    [path] = built()
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=r"\.arrow: expected a whole cache file \(remove it"):
        load(trajectories, tokenizer)


def count_builds(folder: Path, source: Path, journal: Path) -> None:
    def rows():
        with journal.open("a") as file:
            file.write("built\n")
        for index in range(2000):
            yield TrainingSample([1], [index], [1], ended=True), f"record {index}"

    samples = Samples(build_once(folder, [source], "settings", rows), 10, 10)
    assert len(samples) == 2000
    assert samples[1999].response_ids == [1999]


def test_of_several_processes_one_builds(tmp_path):
    source = tmp_path / "source"
    source.write_text("content")
    context = multiprocessing.get_context("fork")
    journal = tmp_path / "journal"
    processes = [context.Process(target=count_builds, args=(tmp_path, source, journal)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert journal.read_text() == "built\n"


def test_a_full_disk_is_one_error_and_leaves_nothing(tmp_path):
    code = """
import resource, sys
from pathlib import Path
from t3d.errors import DataError
from t3d.training.samples import build_once
from t3d.training.states import TrainingSample
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
folder = Path(sys.argv[1])
rows = lambda: ((TrainingSample([1] * 100, [2] * 100, [1] * 100, True), "r") for _ in range(10_000))
try:
    build_once(folder, [], "settings", rows)
except DataError as error:
    print(error)
"""
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "expected room for the training data" in ended.stdout
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_lengths_are_an_array(trajectories, tokenizer):
    assert load(trajectories, tokenizer).lengths.dtype == np.int64


def test_a_rollout_file_is_read_as_stage_1_wrote_it_without_its_failures(trajectories, tokenizer, tmp_path, caplog):
    raw = records(trajectories)
    for record in raw:
        record["full_output"] = record.pop("answer")
    raw[3] |= {"error": ["too long"], "step_map": [[]], "response_ids": [[]], "finish_reason": ["error"]}
    path = tmp_path / "outputs-eval-x.json"
    path.write_text(json.dumps(raw))
    whole, found = load(trajectories, tokenizer), load(path, tokenizer)
    kept = [index for index in range(20) if index != 3]
    assert [found[place] for place in range(19)] == [whole[index] for index in kept]
    assert f"{path}, record 3: 1 response(s) that failed to decode are left out" in caplog.text


def as_texts(path: Path, texts: list, **others) -> Path:
    path.write_text("".join(json.dumps({"text": text, **others}) + "\n" for text in texts))
    return path


def test_texts_are_cut_into_pieces_of_whole_blocks_and_nothing_is_lost(tokenizer, tmp_path, caplog):
    caplog.set_level("INFO")
    texts = [f"Tom has {number} pens. " * number for number in range(1, 9)]
    path = as_texts(tmp_path / "texts.jsonl", texts, source="a field that nobody reads")
    samples = load(path, tokenizer, trace=False, max_gen_length=27, block_size_choices=[2, 4, 8], objective="sft")
    pieces: dict[str, list[TrainingSample]] = {}
    for index in range(len(samples)):
        assert len(samples[index].response_ids) * 2 == samples.lengths[index]
        pieces.setdefault(samples.record(index), []).append(samples[index])
    assert [*pieces] == [f"texts.jsonl, record {index}" for index in range(8)]
    end = tokenizer.get_vocab()["<|endoftext|>"]
    for text, found in zip(texts, pieces.values(), strict=True):
        assert [token for piece in found for token in piece.response_ids] == [
            *tokenizer(text, add_special_tokens=False)["input_ids"],
            end,
        ]
        assert all(len(piece.response_ids) == 24 for piece in found[:-1])
        assert [piece.ended for piece in found] == [False] * (len(found) - 1) + [True]
        assert all(piece.is_text for piece in found)
    longer = [found for found in pieces.values() if len(found) > 1]
    assert longer
    cut = sum(map(len, longer))
    assert f"{len(longer)} texts are cut into {cut} pieces of at most 24 tokens, each a sample" in caplog.messages
    whole = load(path, tokenizer, trace=False, max_gen_length=1000)
    assert len(whole) == 8
    assert len(built()) == 1, "limits apply at reading"


def test_texts_and_answers_may_be_mixed(answers, tokenizer, tmp_path):
    texts = as_texts(tmp_path / "texts.jsonl", ["<|im_end|> is text. " * 20])
    samples = load([answers, texts], tokenizer, trace=False, max_gen_length=64)
    alone = load(answers, tokenizer, trace=False, max_gen_length=64)
    assert [samples[index] for index in range(20)] == [alone[index] for index in range(20)]
    assert len(samples) > 21
    assert all(samples[index].is_text for index in range(20, len(samples)))
    assert tokenizer.eos_token_id not in samples[20].response_ids


@pytest.mark.parametrize(
    ("text", "found"), [("", "''"), (" \n", r"' \\n'"), (7, "int 7"), (None, "nothing"), ("a\0b", ".*")]
)
def test_a_bad_text_is_refused_by_its_index(tokenizer, tmp_path, text, found):
    path = as_texts(tmp_path / "texts.jsonl", ["one", text])
    with pytest.raises(DataError, match=rf"{path}, record 1, field text: expected .*, found {found}"):
        load(path, tokenizer, trace=False)


def test_texts_need_room_for_a_block_and_an_objective_without_steps(tokenizer, tmp_path):
    path = as_texts(tmp_path / "texts.jsonl", ["one"])
    with pytest.raises(
        ConfigError, match=r"training.max_gen_length: expected at least one block of a text .*, found l"
    ):
        load(path, tokenizer, trace=False, max_gen_length=7)
    with pytest.raises(DataError, match=r"record 0: expected a trajectory, as the objective needs, found a record wi"):
        load(path, tokenizer)

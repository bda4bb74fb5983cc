"""The Python interface: what it answers is what a rollout decodes, and a stream is the same, block by block."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import t3d
from t3d import load
from t3d.api import Settings
from t3d.decoding import DecodingConfig
from t3d.errors import CheckpointError, ConfigError, DataError
from t3d.rollout import rollout
from t3d.storage.files import read_json

ROOT = Path(__file__).parents[1]
QUESTION = "A shop has 3 drawers of 6 caps and gets 5 more. How many caps does it have?"


@pytest.fixture(scope="module")
def teacher():
    return load(device="cpu")


@pytest.fixture(scope="module")
def model(checkpoint):
    return load(str(checkpoint), device="cpu")


def test_the_import_costs_no_torch():
    code = "import sys, t3d, t3d.__main__; t3d.__main__.overview(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_every_name_that_is_offered_is_there_and_no_other():
    assert all(getattr(t3d, name).__module__.startswith("t3d.") for name in t3d.__all__)
    with pytest.raises(AttributeError, match="no attribute 'loads'"):
        _ = t3d.loads


def test_the_readmes_five_lines_run_as_they_stand(capsys):
    readme = (ROOT / "README.md").read_text()
    (code,) = re.findall(r"```python\n(from t3d import load\n.*?)```", readme, re.DOTALL)
    assert len([line for line in code.splitlines() if line]) == 5
    exec(code, {})
    out = capsys.readouterr().out
    assert r"\boxed{23}" in out
    assert re.search(r"\d\.\d+\n$", out)


def test_settings_are_the_decoders():
    fields = set(DecodingConfig.__dataclass_fields__)
    assert Settings.__annotations__.keys() == fields - {"mask_id"}


def test_answers_are_those_of_a_rollout(settings, checkpoint, dataset):
    config = settings("evaluation.limit=4")
    records = read_json(rollout(config))
    model = load(str(checkpoint), device="cpu", wording="math")
    questions = [record["question"] for record in read_json(dataset)[:4]]
    answers = model.generate(questions, max_new_tokens=14, denoising_steps=2, temperature=0.7)
    assert [answer.text for answer in answers] == [record["full_output"][0] for record in records]
    assert [answer.trajectory.prompt_ids for answer in answers] == [record["prompt_ids"] for record in records]
    for field, known in (("response_ids", "tokens"), ("step_map", "step_map"), ("num_forwards", "num_forwards")):
        assert [getattr(answer, known) for answer in answers] == [record[field][0] for record in records]


def test_one_prompt_gives_one_answer_whatever_its_form(model):
    answer = model.generate("1+1?", max_new_tokens=9)
    turns = [{"role": "user", "content": "1+1?"}]
    assert model.generate(turns, max_new_tokens=9) == answer
    assert model.generate([turns, "1+1?"], max_new_tokens=9) == [answer, answer]
    assert model.generate([]) == []
    assert answer.tokens_per_forward == len(answer.tokens) / answer.num_forwards
    assert answer.finish_reason in ("stop", "length")


@pytest.mark.parametrize("changes", [{}, {"temperature": 1.0, "seed": 3, "block_size": 8, "denoising_steps": 3}])
def test_a_stream_is_the_answer_block_by_block(model, changes):
    answer = model.generate("1+1?", max_new_tokens=30, **changes)
    blocks = list(model.stream("1+1?", max_new_tokens=30, **changes))
    assert len(blocks) > 2
    assert "".join(block.text for block in blocks) == answer.text
    assert [token for block in blocks for token in block.tokens] == answer.tokens
    assert [step for block in blocks for step in block.step_map] == answer.step_map
    assert [block.answer for block in blocks] == [None] * (len(blocks) - 1) + [answer]
    size = changes.get("block_size", 4)
    assert all(len(block.tokens) == size for block in blocks[1:-1])


def test_a_character_of_several_blocks_comes_whole(model, monkeypatch):
    ids = model.tokenizer("naïve 🙂 café", add_special_tokens=False)["input_ids"]
    text = t3d.api._GrowingText(model.tokenizer)
    parts = [text.grow(ids[: place + 1]) for place in range(len(ids))]
    assert "".join(parts) == "naïve 🙂 café"
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(parts)
    assert "" in parts  # bytes of the emoji waited


def test_the_built_in_teacher_is_asked_as_it_was_taught(teacher):
    assert r"\boxed{23}" in teacher.generate(QUESTION).text
    assert "step by step" in teacher.tokenizer.decode(teacher.generate(QUESTION).trajectory.prompt_ids)


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ([{"role": "robot", "content": "x"}], "prompt 0, message 0: expected an object with content and a role"),
        ([{"role": "user"}], "prompt 0, message 0, content: expected a string, found nothing"),
        ([{"role": "assistant", "content": "x"}], "prompt 0: expected a conversation that ends with the user's turn"),
        (["fine", "\ud800"], "prompt 1, message 0, content: expected text without NUL"),
        (["fine", "x " * 3000], "prompt 1: expected a prompt that fits the model"),
        (["fine", 7], "prompt 1: expected a text or a list of turns, found int"),
        (None, "prompt: expected a text, a list of turns, or a list of either, found NoneType"),
        ({"role": "user", "content": "x"}, "prompt: expected a text, a list of turns, or a list of either, found dict"),
    ],
)
def test_a_prompt_that_is_none_is_named(model, prompt, said):
    with pytest.raises(DataError) as caught:
        model.generate(prompt, max_new_tokens=4)
    assert said in str(caught.value)


def test_mistakes_are_told_when_they_are_made(model, checkpoint):
    with pytest.raises(ConfigError, match=r"decoding\.temprature: expected a setting \(block_size, "):
        model.generate("x", temprature=1.0)
    with pytest.raises(ConfigError, match=r"decoding\.denoising_steps: expected 1 to block_size = 4, found 5"):
        model.stream("x", denoising_steps=5)  # at once, not with the first block
    with pytest.raises(ConfigError, match=r"^dtype: expected one of auto, "):
        load(str(checkpoint), dtype="float8")
    with pytest.raises(ConfigError, match=r"^device: expected a device of this machine, found nowhere"):
        load(str(checkpoint), device="nowhere")
    with pytest.raises(ConfigError, match=r"^wording: expected one of math, "):
        load(str(checkpoint), wording="maths")
    with pytest.raises(CheckpointError, match="no such folder"):
        load("nowhere")
    with pytest.raises(ConfigError, match=r"^model: expected a text, found ''"):
        load("")
    with pytest.raises(ConfigError, match=r"^max_active: expected a whole number of at least 1, found 0"):
        model.generate("x", max_active=0)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"max_new_tokens": "5"}, "decoding.max_new_tokens: expected a whole number, found '5'"),
        ({"max_new_tokens": True}, "decoding.max_new_tokens: expected a whole number, found True"),
        ({"block_size": None}, "decoding.block_size: expected a whole number, found None"),
        ({"seed": 1.5}, "decoding.seed: expected a whole number, found 1.5"),
        ({"temperature": "hot"}, "decoding.temperature: expected a number, found 'hot'"),
        ({"end_early": 1}, "decoding.end_early: expected true or false, found 1"),
        ({"stop_ids": 5}, "decoding.stop_ids: expected token ids, found 5"),
        ({"record": "logprob"}, "decoding.record: expected a list of texts, found 'logprob'"),
    ],
)
def test_a_setting_of_another_type_is_named(model, setting, said):
    with pytest.raises(ConfigError) as caught:
        model.generate("x", **setting)
    assert str(caught.value) == said


def test_a_network_that_computes_no_numbers_is_at_fault(checkpoint):
    broken = load(str(checkpoint), device="cpu")
    for parameter in broken.network.parameters():
        parameter.data.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="answering prompt 0: expected a network that computes finite logits"):
        broken.generate("1+1?", max_new_tokens=4)

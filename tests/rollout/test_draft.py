"""A rollout through drafts (`rollout.draft`) is the plain one, in fewer forwards, and says who drafted."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from t3d.errors import CheckpointError, ConfigError
from t3d.evaluation.results import read_results
from t3d.evaluation.run import evaluate
from t3d.rollout import rollout
from t3d.sdar import SDARConfig, SDARForCausalLM
from t3d.sdar.checkpoint import load_tokenizer
from tests.rollout.test_worker import Exhausted

KEYS = ("rollout.denoising_steps_per_block=4", "rollout.temperature=0.1")
FORWARDS = ("num_forwards", "num_draft_forwards")


@pytest.fixture(scope="module")
def student(checkpoint, tmp_path_factory) -> Path:
    """The checkpoint with other weights, near its own: what it expects often comes true."""
    folder = tmp_path_factory.mktemp("models") / "student"
    shutil.copytree(checkpoint, folder)
    weights, noise = load_file(folder / "model.safetensors"), torch.Generator().manual_seed(1)
    for weight in weights.values():
        weight += 0.02 * torch.randn(weight.shape, generator=noise)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def another(checkpoint, tmp_path):
    """Writes a small student of another shape."""

    def build(**changes: int) -> Path:
        folder = tmp_path / "another"
        shutil.copytree(checkpoint, folder)
        SDARForCausalLM(SDARConfig.from_pretrained(checkpoint, **changes)).save_pretrained(folder)
        return folder

    return build


def decoded(settings, *overrides: str) -> tuple[bytes, dict[str, list[list[int]]]]:
    """What a rollout file holds but for the forwards, to the byte, and the forwards."""
    records = json.loads(rollout(settings(*KEYS, *overrides)).read_text())
    forwards = {name: [record.pop(name, None) for record in records] for name in FORWARDS}
    return json.dumps(records).encode(), forwards


def total(counts: list[list[int]]) -> int:
    return sum(sum(each) for each in counts)


@pytest.mark.parametrize("confidences", [(), ("rollout.record=[logprob,entropy]", "rollout.num_response_per_task=2")])
def test_drafts_of_either_kind_give_the_plain_rollout_to_the_byte_in_fewer_forwards(
    settings, student, confidences
) -> None:
    plain, usual = decoded(settings, *confidences)
    own, less = decoded(settings, *confidences, "rollout.draft=self", "rollout.max_active=3")
    assert own == plain
    assert total(less["num_forwards"]) < 0.9 * total(usual["num_forwards"])
    assert set(less["num_draft_forwards"]) == {None}
    helped, both = decoded(settings, *confidences, f"rollout.draft={student}")
    assert helped == plain
    drafted = total(both["num_draft_forwards"])
    assert drafted > 0
    assert total(both["num_forwards"]) - drafted < 0.9 * total(usual["num_forwards"])


def test_a_rollout_through_drafts_has_a_fingerprint_of_its_own_and_the_plain_ones_is_as_ever(settings, student) -> None:
    def fingerprint(*overrides: str) -> dict:
        path = rollout(settings(*KEYS, "evaluation.limit=2", *overrides))
        return json.loads(path.with_suffix(".meta.json").read_text())["fingerprint"]

    plain, own, helped = fingerprint(), fingerprint("rollout.draft=self"), fingerprint(f"rollout.draft={student}")
    assert "draft" not in plain
    assert own == plain | {"draft": "self"}
    assert helped["draft"] not in ("self", helped["model"])
    assert {name: helped[name] for name in plain} == plain


def test_batching_interruptions_and_memory_change_nothing(settings, interrupted, monkeypatch, tmp_path, caplog) -> None:
    def run(*overrides: str, name: str = "project") -> bytes:
        place = f"experiment.project={tmp_path / name}"
        return rollout(settings(*KEYS, "rollout.draft=self", place, *overrides)).read_bytes()

    whole = run(name="whole")
    assert run("rollout.batch_size=4", "rollout.max_active=2", name="batches") == whole
    interrupted(*KEYS, "rollout.draft=self", "rollout.max_active=2")
    assert rollout(settings(*KEYS, "rollout.draft=self")).read_bytes() == whole
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        Exhausted(bears=60, after=3).patch(patch)
        assert run(name="full") == whole
    assert "no memory on cpu for 10 sequences at a time" in caplog.text


def test_an_evaluation_through_drafts_says_so_and_has_files_and_costs_of_its_own(settings, student) -> None:
    found = [
        evaluate(settings(*KEYS, "execute.math_verify=false", *draft))
        for draft in ((), ("rollout.draft=self",), (f"rollout.draft={student}",))
    ]
    assert len({one.path for one in found}) == 3
    plain, own, helped = (read_results(one.path) for one in found)
    assert plain.decoding.draft is None
    assert own.decoding.draft == "self"
    assert plain.metrics.acc == own.metrics.acc == helped.metrics.acc
    assert own.metrics.tokens_per_step == plain.metrics.tokens_per_step
    assert own.metrics.tokens_per_forward > 1.1 * plain.metrics.tokens_per_forward
    records = json.loads(Path(helped.rollouts).read_text())
    forwards = sum(record["num_forwards"][0] for record in records)
    tokens = sum(record["response_length"][0] for record in records)
    assert helped.metrics.tokens_per_forward == tokens / forwards
    # Each prompt fits into one forward: of the model, and of the student.
    assert helped.metrics.tokens_per_forward_decode == tokens / (forwards - 2 * len(records))


@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        (["rollout.denoising_steps_per_block=1"], r"rollout.draft: expected null where a block takes one step"),
        (["rollout.tensor_parallel_size=2"], r"rollout.draft: expected null for a divided model"),
        (["rollout.cuda_graphs=true"], r"rollout.cuda_graphs: expected null or false beside rollout.draft, found True"),
        (["rollout.paged=true"], r"rollout.paged: expected null or false beside rollout.draft, found True"),
        (["rollout.draft=''"], r"rollout.draft: expected null, self, or a model folder or hub id"),
        (
            ["table.checkpoints={a: b}", "table.decodings=[[4,4]]"],
            r"rollout.draft: expected null beside table.checkpoints, found self",
        ),
    ],
)
def test_settings_that_leave_no_room_for_drafts_are_refused(settings, overrides, error) -> None:
    with pytest.raises(ConfigError, match=error):
        settings(*KEYS, "rollout.draft=self", *overrides)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"block_size": 8}, r"expected block_size 4, as \S+, found 8"),
        ({"vocab_size": 2048}, r"expected vocab_size 1080, as \S+, found 2048"),
        ({"max_position_embeddings": 64}, r"expected max_position_embeddings of at least \d+, as \S+, found 64"),
    ],
)
def test_a_student_of_another_shape_is_refused(settings, another, changes, error) -> None:
    folder = another(**changes)
    with pytest.raises(CheckpointError, match=rf"rollout.draft, {folder}: {error}"):
        rollout(settings(*KEYS, f"rollout.draft={folder}"))


def test_a_student_with_other_tokens_is_refused(settings, another) -> None:
    folder = another()
    tokenizer = load_tokenizer(folder)
    path = folder / "tokenizer.json"
    first, second = tokenizer.convert_ids_to_tokens([10, 11])
    fields = json.loads(path.read_text())
    vocabulary = fields["model"]["vocab"]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(fields))
    with pytest.raises(CheckpointError, match=rf"rollout.draft, {folder}: expected the tokens of \S+, found another"):
        rollout(settings(*KEYS, f"rollout.draft={folder}"))

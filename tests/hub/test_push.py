"""Pushing to a hub on this machine: what is told before, what arrives, what stays here, and every refusal in a line."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from peft import LoraConfig
from pyarrow import parquet

from t3d.cards.data import PARQUET
from t3d.errors import CheckpointError, DataError, UserError
from t3d.evaluation.metrics import Metrics
from t3d.evaluation.results import Decoding, Results, write_results
from t3d.hub import rollouts, upload
from t3d.hub.__main__ import main
from t3d.hub.private import local_path
from t3d.sdar.adapter import Adapter
from t3d.sdar.checkpoint import load_model

# httpx's, at how huggingface_hub sends a large file.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

RECORD = {
    "question": "1+1? See /home/ann/x.",
    "ground_truth_answer": "2",
    "level": 3,
    "prompt": "abc",
    "prompt_ids": [5, 6, 7],
    "block_size": 4,
    "full_output": ["first é", "second"],
    "extracted_output": ["1", "2"],
    "response_ids": [[10, 11, 12, 13, 14, 15], [20]],
    "response_length": [6, 1],
    "step_map": [[1, 3, 2, 3, 2, 4], [1]],
    "finish_reason": ["stop", "length"],
    "num_forwards": [5, 1],
    "num_steps": [4, 1],
    "logprob": [[-0.5, -0.25, -1.0, -2.0, -0.5, 0.0], [-0.5]],
}


@pytest.fixture
def student(trained, tmp_path) -> Path:
    """A copy of the trained checkpoint in a run's folder, with what does not belong to a model beside it."""
    run = tmp_path / "run"
    folder = run / "ckpt/optimized"
    shutil.copytree(trained / "ckpt/optimized", folder)
    shutil.copyfile(trained / "config.yaml", run / "config.yaml")
    for name in ("optimizer.bin", "reference.safetensors", "scheduler.bin", "state/random_states_0.pkl", "events.log"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("stays")
    return folder


@pytest.fixture
def rollout_file(tmp_path) -> Callable[..., Path]:
    def write(*records: dict[str, Any], note: dict[str, Any] | None = None) -> Path:
        path = tmp_path / "outputs-eval-M-Tiny.json"
        path.write_text(json.dumps(records or [RECORD]))
        if note is not None:
            path.with_name("outputs-eval-M-Tiny.meta.json").write_text(json.dumps(note))
        return path

    return write


@pytest.fixture
def results_file(tmp_path) -> Callable[..., Path]:
    def write(**changes: Any) -> Path:
        results = Results(
            dataset="MATH500",
            checkpoint=None,
            decoding=Decoding(4, 1, "low_confidence_static", 0.1),
            metrics=Metrics(500, 0.4567, 0.0223, tokens_per_step=4.0),
            environment={},
            config={},
        )
        path = tmp_path / "results-MATH500.json"
        write_results(path, replace(results, **changes))
        return path

    return write


def test_a_dry_run_tells_all_and_sends_nothing(student, hub, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    hub.server_close()
    main(["push", "checkpoint", str(student), "me/model"])
    said = capsys.readouterr().out
    assert said.startswith(f"model {hub.endpoint}/me/model (public, if it is new)\n")
    size = (student / "model.safetensors").stat().st_size
    assert re.search(rf"\n  model\.safetensors +{size / 1000:.1f} kB\n", said)
    assert re.search(r"\n  \d+ files, [\d.]+ kB\n", said)
    assert "\nleft out: optimizer.bin\n" in said
    assert "\nleft out: state/random_states_0.pkl\n" in said
    assert "# SDAR-4B-Chat, trained with t3d (sft)" in said
    assert said.endswith("nothing was sent: --yes sends it\n")
    assert hub.repositories == {}


def test_the_adapter_of_a_merged_checkpoint_goes_with_it(student, hub, capsys):
    adapter = student / "adapter"
    config = LoraConfig(r=2, target_modules=["q_proj"], base_model_name_or_path="/data/ann/models/SDAR-4B-Chat")
    adapter.mkdir()
    Adapter(config, {"base_model.model.q_proj.lora_A.weight": torch.ones(2, 4)}).write(adapter)
    (adapter / "notes.txt").write_text("stays")
    main(["push", "checkpoint", str(student), "me/model"])
    said = capsys.readouterr().out
    assert "left out: adapter/notes.txt" in said
    assert "adapter_config.json: the local path it was loaded from is replaced by its last part" in said
    main(["push", "checkpoint", str(student), "me/model", "--yes"])
    arrived = hub.repositories["model", "me/model"]
    assert {name for name in arrived if "/" in name} == {
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
    }
    assert json.loads(arrived["adapter/adapter_config.json"])["base_model_name_or_path"] == "SDAR-4B-Chat"
    weights = "adapter/adapter_model.safetensors"
    assert arrived[weights] == (student / weights).read_bytes()


def test_an_adapter_alone_is_no_model(student):
    (student / "model.safetensors").rename(student / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"expected weights \(model\*\.safetensors\), found none"):
        main(["push", "checkpoint", str(student), "me/model"])


def test_a_pushed_checkpoint_is_the_one_that_was_trained(student, hub, results_file, tmp_path, capsys):
    results = results_file(checkpoint=str(student))
    main(["push", "checkpoint", str(student), "me/model", "--yes", "--private", "--results", str(results)])
    arrived = hub.repositories["model", "me/model"]
    assert (hub.private, hub.tokens, hub.messages) == ({"me/model"}, {"Bearer hf_secret"}, ["Uploaded with t3d"])
    left_out = {"optimizer.bin", "reference.safetensors", "scheduler.bin", "events.log"}
    files = {path.name for path in student.iterdir() if path.is_file()}
    assert arrived.keys() == files - left_out
    for name in arrived.keys() - {"README.md"}:
        assert arrived[name] == (student / name).read_bytes(), name
    card = arrived["README.md"].decode()
    assert (
        "| MATH500 | block 4, 1 step, low_confidence_static, temperature 0.1 | 45.67 | 2.23 | 500 | 4.00 | - |" in card
    )
    assert "model-index:" in card
    assert "me/model" in card
    assert "ORGANISATION/NAME" in (student / "README.md").read_text()  # the folder stays as it is
    copy = tmp_path / "downloaded"
    copy.mkdir()
    for name, content in arrived.items():
        (copy / name).write_bytes(content)
    ours, theirs = load_model(student).state_dict(), load_model(copy).state_dict()
    assert all(ours[name].equal(theirs[name]) for name in ours)
    assert f"{hub.endpoint}/me/model/commit/" in capsys.readouterr().out


def test_paths_that_a_checkpoint_was_loaded_from_are_not_shared(student, hub, capsys):
    config = json.loads((student / "config.json").read_text())
    (student / "config.json").write_text(json.dumps(config | {"_name_or_path": "/data/ann/SDAR-4B-Chat"}))
    main(["push", "checkpoint", str(student), "me/model", "--yes"])
    pushed = json.loads(hub.repositories["model", "me/model"]["config.json"])
    assert pushed == config | {"_name_or_path": "SDAR-4B-Chat"}
    main(["push", "checkpoint", str(student), "me/model"])
    assert "config.json: the local path it was loaded from is replaced by its last part" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("generation_config.json", '{"cache": ["/scratch/ann/x"]}', "field cache, entry 0: expected no path of this"),
        (
            "modeling_sdar.py",
            "# see /home/ann/notes\n",
            "line 1: expected no path of this machine in what is shared, found",
        ),
        ("README.md", "---\ntags: [t3d]\n---\n\nFrom /Users/ann/run\n", "found /Users/ann"),
    ],
)
def test_any_other_path_of_this_machine_is_refused(name, content, said, student, hub):
    (student / name).write_text(content)
    with pytest.raises(DataError, match=said):
        main(["push", "checkpoint", str(student), "me/model", "--yes"])
    assert hub.repositories == {}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("/data/models/x", "/data/models/x"),
        ("in C:\\Users\\ann\\x", "C:\\Users\\ann"),
        ("see /home/ann/x", "/home/ann"),
        ("3/4 of /tmp", None),
        ("https://huggingface.co/JetLM/SDAR", None),
    ],
)
def test_what_counts_as_a_path_of_this_machine(text, found):
    assert local_path(text) == found


def test_a_checkpoint_with_its_bases_card_or_none_gets_one_of_its_run(student, capsys, hub):
    for card in (None, "---\nlicense: apache-2.0\n---\n\n# The base's own card\n"):
        (student / "README.md").unlink()
        if card is not None:
            (student / "README.md").write_text(card)
        main(["push", "checkpoint", str(student), "me/model"])
        said = capsys.readouterr().out
        assert "# SDAR-4B-Chat, trained with t3d (sft)" in said
        assert "The base's own card" not in said
        assert ("without the tag t3d it is the base model's" in said) == (card is not None)
        (student / "README.md").write_text("x")


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (lambda folder: shutil.rmtree(folder), "expected a model folder, such as"),
        (lambda folder: (folder / "config.json").unlink(), "config.json: expected the model's configuration"),
        (
            lambda folder: (folder / "model.safetensors").unlink(),
            r"expected weights \(model\*\.safetensors\), found none",
        ),
    ],
)
def test_what_is_no_checkpoint_is_refused(prepare, said, student, hub):
    prepare(student)
    with pytest.raises(CheckpointError, match=said):
        main(["push", "checkpoint", str(student), "me/model", "--yes"])


def test_results_of_another_checkpoint_are_refused(student, trained, results_file):
    results = results_file(checkpoint=str(trained / "ckpt/step-000001"))
    with pytest.raises(DataError, match=r"results-MATH500\.json, field checkpoint: expected .*, which is to be"):
        main(["push", "checkpoint", str(student), "me/model", "--results", str(results)])


def test_rollouts_arrive_as_a_data_set_of_parquet_and_our_json(rollout_file, hub, results_file, tmp_path):
    note = {
        "checkpoint": "/data/ann/SDAR-4B-Chat",
        "fingerprint": {"block_size": 4, "denoising_steps": 2, "model": "x"},
    }
    other = RECORD | {"level": 5, "ground_truth_answer": "3"}
    source = rollout_file(RECORD, other, note=note)
    results = results_file(rollouts=str(source))
    main(["push", "rollouts", str(source), "me/data", "--yes", "--license", "mit", "--results", str(results)])
    arrived = hub.repositories["dataset", "me/data"]
    assert arrived.keys() == {"README.md", PARQUET, source.name}
    assert arrived[source.name] == source.read_bytes()
    (tmp_path / "table.parquet").write_bytes(arrived[PARQUET])
    assert parquet.read_table(tmp_path / "table.parquet").to_pylist() == [RECORD, other]
    card = arrived["README.md"].decode()
    for line in (
        "license: mit",
        "  - split: train",
        f"    path: {PARQUET}",
        "| model | SDAR-4B-Chat |",
        "| steps per block | 2 |",
        "| problems | 2 |",
        "| responses | 4 |",
        'rollouts = load_dataset("me/data", split="train")',
    ):
        assert line in card.splitlines(), line
    assert "| MATH500 | block 4, 1 step, low_confidence_static, temperature 0.1 | 45.67 | 2.23 | 500 |" in card
    assert "/data/ann" not in card


def test_fields_without_one_type_are_json_text_and_groups_join(rollout_file, hub, tmp_path, monkeypatch):
    monkeypatch.setattr(rollouts, "ROWS", 2)
    made = [RECORD | {"level": level} for level in (1, "two", None)]
    main(["push", "rollouts", str(rollout_file(*made)), "me/data", "--yes"])
    arrived = hub.repositories["dataset", "me/data"]
    (tmp_path / "table.parquet").write_bytes(arrived[PARQUET])
    table = parquet.read_table(tmp_path / "table.parquet")
    assert table.column("level").to_pylist() == ["1", '"two"', None]
    assert table.column("step_map").to_pylist() == [RECORD["step_map"]] * 3
    assert "Columns that hold JSON text: level." in arrived["README.md"].decode()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"step_map": [[9, 3, 2, 3, 2, 4], [1]]}, "record 1, response 0, field step_map: expected steps that increase"),
        ({"source": "/data/ann/x.json"}, "record 1, field source: expected no path of this machine in what is shared"),
        ({"extracted_output": [1, 2]}, "records 0 to 1: expected fields of the types that rollouts have"),
    ],
)
def test_rollouts_that_cannot_be_shared_are_one_error(change, said, rollout_file, hub):
    with pytest.raises(DataError, match=said):
        main(["push", "rollouts", str(rollout_file(RECORD, RECORD | change)), "me/data", "--yes"])
    assert hub.repositories == {}


@pytest.mark.parametrize(
    ("part", "status", "said"),
    [
        ("create", 401, "a token that the hub knows, found 401: no"),
        ("create", 403, "a token that may write there, found 403: no"),
        ("commit", 403, "a token that may write there, found 403: no"),
        (
            "preupload",
            404,
            "a repository that this token can see, or an owner under whom it may make one, found 404: no",
        ),
        ("commit", 413, "a hub that takes the files, found 413: no"),
    ],
)
def test_a_hub_that_refuses_is_one_line(part, status, said, rollout_file, hub):
    hub.refusals[part] = (status, "no")
    with pytest.raises(UserError) as caught:
        main(["push", "rollouts", str(rollout_file()), "me/data", "--yes"])
    assert str(caught.value) == f"{hub.endpoint}/datasets/me/data: expected {said}"
    assert hub.messages == []


def test_no_token_is_one_line(rollout_file, hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(
        UserError, match=r"expected a token that may write \(HF_TOKEN, or `hf auth login`\), found none$"
    ):
        main(["push", "rollouts", str(rollout_file()), "me/data", "--yes"])
    assert hub.repositories == {}


def test_a_hub_that_says_nothing_is_one_line(rollout_file, hub, monkeypatch):
    monkeypatch.setattr(upload, "SILENCE_S", 0.2)
    hub.silence.clear()
    with pytest.raises(UserError, match="expected a hub that can be reached and takes the files, found ReadTimeout"):
        main(["push", "rollouts", str(rollout_file()), "me/data", "--yes"])
    hub.silence.set()


def test_no_network_is_one_line(rollout_file, hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        UserError, match="expected a hub that can be reached and takes the files, found Connect"
    ) as caught:
        main(["push", "rollouts", str(rollout_file()), "me/data", "--yes"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["model", "me/a--b", "/x/y", "me/model.git"])
def test_a_name_that_no_repository_can_have_is_refused(name, student):
    with pytest.raises(UserError, match="REPO: expected owner/name, as the hub spells repositories, found"):
        main(["push", "checkpoint", str(student), name])

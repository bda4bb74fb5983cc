"""A finished training run from a published checkpoint, and a hub that takes it."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import huggingface_hub
import pytest

from t3d.config import TrainConfig, load_config
from t3d.toy.problems import generate
from t3d.training.loop import train

from ..published.checkpoints import publish
from .server import UploadHub, upload_hub

BASE_CARD = """---
license: apache-2.0
model-index:
- name: the base
  results: []
---

# The base's own card
"""


@pytest.fixture(scope="session")
def trained(tmp_path_factory, checkpoint) -> Path:
    """The folder of a run of two steps; the base lies in the hub's cache under its id, with a card and a licence."""
    root = tmp_path_factory.mktemp("hub")
    base = publish("SDAR-4B-Chat", root / "models--JetLM--SDAR-4B-Chat" / "snapshots" / "abc", checkpoint)
    (base / "README.md").write_text(BASE_CARD)
    (base / "LICENSE").write_text("The base's licence.\n")
    data = root / "Worked.json"
    data.write_text(json.dumps(list(islice(generate("train"), 4))))
    settings = [
        f"model.pretrained_model={base}",
        f"dataset.optimization_data={data}",
        f"experiment.output_dir={root / 'run'}",
        "experiment.save_every_steps=1",
        "training.objective=sft",
        "training.max_steps=2",
        "training.mixed_precision=no",
        "training.global_batch_size=4",
        "optimizer.params.learning_rate=0.002",
    ]
    return train(load_config(TrainConfig, settings, "", "")).parents[1]


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[UploadHub]:
    """A hub on this machine, which huggingface_hub takes for the only one; there is a token."""
    with upload_hub() as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.endpoint)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield server

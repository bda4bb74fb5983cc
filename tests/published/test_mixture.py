"""SDAR-30B-A3B as it is published, with a small network behind it: loaded, saved, and taken through every stage."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from t3d.config import EvalConfig, SampleConfig, TrainConfig, load_config
from t3d.data.preprocess import rename_answers
from t3d.doctor.command import examine
from t3d.errors import CheckpointError
from t3d.evaluation.run import evaluate
from t3d.rollout import rollout
from t3d.sdar import SDARMoeConfig, SDARMoeForCausalLM
from t3d.sdar.checkpoint import load_model, load_model_config, save_model
from t3d.sdar.mixture import STACKED
from t3d.toy.problems import main as write_problems
from t3d.training.loop import train
from t3d.training.memory import main as estimate_memory

from .checkpoints import PUBLISHED, publish

NAME = "SDAR-30B-A3B-Chat"
ROOT = Path(__file__).parents[2]
THEIRS = {"experts_implementation": "eager"} if STACKED else {}  # grouped products have no double precision


def stored(folder: Path) -> dict[str, Tensor]:
    return {name: weight for path in folder.glob("*.safetensors") for name, weight in load_file(path).items()}


@torch.no_grad()
@pytest.mark.parametrize("shard_size", ["5GB", "20KB"])
@pytest.mark.parametrize("layout", [{}, {"norm_topk_prob": False, "mlp_only_layers": [0]}, {"decoder_sparse_step": 2}])
def test_it_is_loaded_and_saved_under_the_hubs_names(checkpoint, tmp_path, shard_size, layout):
    base = publish(NAME, tmp_path / "base", checkpoint, shard_size, **layout)
    weights = stored(base)
    sparse = {int(name.split(".")[2]) for name in weights if re.search(r"mlp\.experts\.\d\.gate_proj\.weight", name)}
    assert sparse == ({1} if "mlp_only_layers" in layout or "decoder_sparse_step" in layout else {0, 1})
    assert (len(list(base.glob("*.safetensors"))) > 1) == (shard_size != "5GB")
    model = load_model(base)
    assert isinstance(model, SDARMoeForCausalLM)
    assert model.dtype == torch.bfloat16
    save_model(model, model.state_dict(), base, tmp_path / "saved")
    saved = stored(tmp_path / "saved")
    assert saved.keys() == weights.keys()
    assert all(torch.equal(saved[name], weight) for name, weight in weights.items())
    assert (tmp_path / "saved/config.json").read_bytes() == (base / "config.json").read_bytes()
    fields = json.loads((base / "config.json").read_text())
    qwen3 = {key: value for key, value in fields.items() if key not in ("model_type", "auto_map")}
    exact = torch.float64
    theirs = Qwen3MoeForCausalLM.from_pretrained(
        tmp_path / "saved", config=Qwen3MoeConfig(**qwen3), dtype=exact, **THEIRS
    ).eval()
    ids = torch.randint(5, 1000, (1, 12), generator=torch.Generator().manual_seed(0))
    causal = torch.ones(12, 12, dtype=torch.bool).tril()[None, None]
    loaded = [load.from_pretrained(base, dtype=exact) for load in (SDARMoeForCausalLM, AutoModelForCausalLM)]
    for ours in (load_model(tmp_path / "saved", exact), *loaded):
        assert torch.equal(ours(ids, attention_mask=causal).logits, theirs(ids, attention_mask=causal).logits)


def test_a_configuration_written_anew_keeps_the_hubs_fields(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[NAME]))
    config = load_model_config(tmp_path)
    assert isinstance(config, SDARMoeConfig)
    config.save_pretrained(tmp_path / "again")
    fields = json.loads((tmp_path / "again/config.json").read_text())
    ours = {"transformers_version", "use_cache", "auto_map", "rope_scaling"}  # of the release that writes
    assert {name: fields[name] for name in PUBLISHED[NAME].keys() - ours} == {
        name: value for name, value in PUBLISHED[NAME].items() if name not in ours
    }


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_experts_per_tok": 5}, "num_experts_per_tok: expected at most num_experts = 4, found 5"),
        ({"num_experts": "4"}, "expected num_experts, an integer, found 4"),
        ({"decoder_sparse_step": 0}, "decoder_sparse_step: expected at least 1, found 0"),
        ({"mlp_only_layers": 1}, "expected mlp_only_layers, a list of layers' numbers, found 1"),
        ({"moe_intermediate_size": 25}, r"experts\.0\.gate_proj\.weight: \[25, 32\] in .*, \[24, 32\] in the weights"),
        ({"num_experts": 5}, r"mlp\.(gate|experts\.4\.gate_proj)\.weight: \[.*\] in config\.json, "),
        (
            {"mlp_only_layers": [0]},
            r"layers\.0\.mlp\.gate_proj\.weight: \[64, 32\] in config\.json, nothing in the wei",
        ),
    ],
)
def test_values_that_are_not_the_networks_are_one_error(checkpoint, tmp_path, changes, said):
    folder = publish(NAME, tmp_path / "model", checkpoint)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(CheckpointError, match=said):
        load_model(folder)


def test_all_stages_take_it_and_its_student(tokenizer_folder, tmp_path, monkeypatch, capsys):
    base = publish(NAME, tmp_path / "base", tokenizer_folder)
    problems = tmp_path / "Tiny.json"
    write_problems(["--limit", "2", "--out", str(problems)])

    def decoding(name: str, model: Path) -> list[str]:
        keys = [f"experiment.project={tmp_path / name}", f"evaluation.checkpoint_path={model}", "rollout.max_token=8"]
        return [*keys, f"evaluation.eval_dataset={problems}", "evaluation.data_type=math", "rollout.device=cpu"]

    rollout(load_config(SampleConfig, decoding("sample", base), "", ""))
    rename_answers(tmp_path / "sample/temp_data/outputs-eval-base-Tiny.json", tmp_path / "data.json")
    training = [
        f"model.pretrained_model={base}",
        f"dataset.optimization_data={tmp_path / 'data.json'}",
        f"experiment.output_dir={tmp_path / 'run'}",
        "training.max_steps=1",
        "training.gradient_accumulation_steps=2",
        "training.mixed_precision=no",
        "lr_scheduler.params.warmup_steps=0",
        "optimizer.params.learning_rate=1e-2",
    ]
    monkeypatch.setattr("t3d.doctor.command._machine", lambda _examination, _kind: None)
    for kind, keys in (("train", training), ("sample", decoding("dry", base))):
        found = {finding.subject: finding for finding in examine(kind, keys).findings}
        assert not [finding for finding in found.values() if finding.level == "error"]
        assert found["rehearsal"].level == "ok"
    student = train(load_config(TrainConfig, training, "", ""))
    assert (student / "config.json").read_bytes() == (base / "config.json").read_bytes()
    before, after = stored(base), stored(student)
    assert after.keys() == before.keys()
    assert all(weight.dtype == torch.bfloat16 for weight in after.values())
    assert any(not torch.equal(after[name], before[name]) for name in before if "mlp.experts" in name)
    ended = evaluate(load_config(EvalConfig, decoding("eval", student), "", ""))
    assert json.loads(ended.path.read_text())["n"] == 2
    estimate_memory([f"model.pretrained_model={base}", "dataset.optimization_data=none", "num_gpus=8"])
    assert f"{base}: 0.0" in capsys.readouterr().out


def test_the_memory_estimate_counts_every_expert(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[NAME]))
    estimate_memory([f"model.pretrained_model={tmp_path}", "dataset.optimization_data=none", "num_gpus=8"])
    assert f"{tmp_path}: 30.53e9 parameters" in capsys.readouterr().out

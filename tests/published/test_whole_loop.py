"""The loop on published checkpoints as people run it: the entry scripts, from a folder or a hub, to a student."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from t3d.sdar import SDARForCausalLM
from t3d.sdar.checkpoint import load_model
from t3d.toy.problems import main as write_problems

from .checkpoints import DENSE, PUBLISHED, TOKENIZER, publish
from .hub import local_hub

ROOT = Path(__file__).parents[2]
HUB = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE", "HF_TOKEN")


class Loop:
    """The stages on one checkpoint, each in its own process."""

    def __init__(self, model: str, folder: Path, **environment: str) -> None:
        self.model, self.folder, self.environment = model, folder, environment
        self.said = ""
        write_problems(["--limit", "2", "--out", str(folder / "Tiny.json")])

    def run(self, script: str, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
        kept = {name: value for name, value in os.environ.items() if name not in HUB}
        paths = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HOME": str(self.folder / "hf")}
        ended = subprocess.run(
            [sys.executable, str(ROOT / script), *arguments],
            cwd=cwd,
            env=kept | paths | self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        self.said += ended.stderr
        return ended

    def stage(self, script: str, *arguments: str, cwd: Path = ROOT) -> None:
        ended = self.run(script, *arguments, cwd=cwd)
        assert ended.returncode == 0, ended.stderr[-3000:]
        assert "Traceback" not in ended.stderr

    def decode(self, script: str, config: str, checkpoint: str, *arguments: str) -> Path:
        common = [
            f"config={ROOT / 'configs' / config}",
            f"evaluation.checkpoint_path={checkpoint}",
            f"evaluation.eval_dataset={self.folder / 'Tiny.json'}",
            "evaluation.data_type=math",
            "rollout.max_token=8",
            "rollout.device=cpu",
        ]
        project = self.folder / script.split(".")[0].replace("/", "-")
        self.stage(script, *common, f"experiment.project={project}", *arguments, cwd=(ROOT / script).parent)
        return project

    def train(self) -> Path:
        rollouts = self.decode("sample/sdar_sample.py", "sdar_sample.yaml", self.model) / "temp_data"
        name = f"outputs-eval-{Path(self.model).name}-Tiny.json"
        shutil.copyfile(rollouts / name, self.folder / "M-Tiny.json")
        self.stage("data/rename_key.py", "--model_name", "M", "--dataset", "Tiny", cwd=self.folder)
        self.stage(
            "train/self_ddo_sdar_full.py",
            "config=configs/ddo_sdar_full_self.yaml",
            f"model.pretrained_model={self.model}",
            f"dataset.optimization_data={self.folder / 'M-Tiny_renamed.json'}",
            f"experiment.output_dir={self.folder / 'run'}",
            "training.max_steps=1",
            "training.gradient_accumulation_steps=2",
            "training.mixed_precision=bf16",
            "lr_scheduler.params.warmup_steps=0",
            "optimizer.params.learning_rate=1e-3",
        )
        return self.folder / "run/ckpt/optimized"


@torch.no_grad()
def assert_loads_where_its_base_did(student: Path, base: Path, name: str) -> None:
    """By our classes, by the original configuration alone, and by transformers' own Qwen3."""
    fields = json.loads((student / "config.json").read_text())
    assert (student / "config.json").read_bytes() == (base / "config.json").read_bytes()
    published = {"auto_map", "rope_theta", "torch_dtype", *PUBLISHED[name]} - {"block_size", "mask_token_id"}
    assert published <= fields.keys()
    assert {path.name for path in student.iterdir() if path.suffix != ".safetensors"} >= {
        path.name for path in base.iterdir() if "safetensors" not in path.name
    }
    trained, before = load_model(student), load_model(base)
    assert trained.dtype == torch.bfloat16
    assert any(not torch.equal(new, old) for new, old in zip(trained.parameters(), before.parameters(), strict=True))
    ours_alone = ("model_type", "auto_map", "attn_implementation")
    qwen3 = {key: value for key, value in fields.items() if key not in ours_alone}
    # In double precision: in bf16, releases of transformers differ in how they repeat keys, and so in rounding.
    exact = torch.float64
    theirs = Qwen3ForCausalLM.from_pretrained(student, config=Qwen3Config(**qwen3), dtype=exact).eval()
    ids = torch.randint(5, 1000, (1, 12), generator=torch.Generator().manual_seed(0))
    causal = torch.ones(12, 12, dtype=torch.bool).tril()[None, None]
    loaded = [load.from_pretrained(student, dtype=exact) for load in (SDARForCausalLM, AutoModelForCausalLM)]
    for ours in (load_model(student, exact), *loaded):
        assert torch.equal(ours(ids, attention_mask=causal).logits, theirs(ids, attention_mask=causal).logits)


@pytest.mark.slow
@pytest.mark.parametrize("tokenizer_folder", ["SDAR" if TOKENIZER.is_dir() else "TinyMath"], indirect=True)
@pytest.mark.parametrize(("name", "from_hub"), [(DENSE[0], False), (DENSE[1], True)])
def test_all_stages_take_a_published_checkpoint_and_its_student(tokenizer_folder, tmp_path, name, from_hub):
    """Sharded weights from a folder, then a single file from a hub."""
    base = publish(name, tmp_path / name, tokenizer_folder, "5GB" if from_hub else "60KB")
    assert (len(list(base.glob("*.safetensors"))) > 1) != from_hub
    with local_hub("JetLM/SDAR", base) as hub:
        loop = Loop("JetLM/SDAR" if from_hub else str(base), tmp_path, HF_ENDPOINT=hub.endpoint)
        student = loop.train()
        loop.decode("eval.py", "eval.yaml", str(student))
        loop.stage("t3d/training/memory.py", f"model.pretrained_model={loop.model}", "dataset.optimization_data=none")
    assert sorted(hub.downloaded) == (sorted(path.name for path in base.iterdir()) if from_hub else [])
    # Stage 1, training and evaluation: three commands that need a mask token and a block size.
    assert [loop.said.count(f"has no {field}: ") for field in ("mask_token_id", "block_size")] == (
        [3, 3] if from_hub else [0, 0]
    )
    results = json.loads(next((tmp_path / "eval" / "results").glob("results-*.json")).read_text())
    assert results["n"] == 2
    assert_loads_where_its_base_did(student, base, name)


@pytest.mark.slow
def test_a_hub_that_is_not_there_is_one_line(tmp_path):
    loop = Loop("JetLM/SDAR", tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    ended = loop.run("eval.py", "evaluation.checkpoint_path=JetLM/SDAR", "evaluation.eval_dataset=Tiny.json")
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert ended.stderr.startswith(
        "error: JetLM/SDAR: expected a model folder (relative paths start at the working fol"
    )
    assert " or a model on the hub, found neither (" in ended.stderr

"""Adapters of peft's, wherever they were trained, merged into a model's folder."""

import json
import shutil

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from t3d.__main__ import main
from t3d.errors import UserError
from t3d.sdar.checkpoint import load_model

# peft calls transformers by older names.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
NOWHERE = "base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight"


def logits(network) -> torch.Tensor:
    with torch.no_grad():
        return network(input_ids=torch.arange(40, 64)[None]).logits


def train_elsewhere(checkpoint, folder, kind=LoraConfig, **settings):
    """An adapter of random numbers, as peft writes it; gives its network."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        tuned = get_peft_model(load_model(checkpoint), kind(**settings)).eval()
        for name, weight in tuned.named_parameters():
            if "lora_B" in name or "lora_magnitude" in name:
                torch.nn.init.normal_(weight, 1.0 if "magnitude" in name else 0.0, 0.1)
    tuned.save_pretrained(folder)
    return tuned


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": r".*layers\.1\..*(o|down)_proj", "lora_alpha": 3},
        {"target_modules": "all-linear", "use_rslora": True, "rank_pattern": {"q_proj": 2}},
        {"target_modules": ["k_proj", "up_proj"], "use_dora": True},
    ],
    ids=["names", "pattern", "all-linear", "dora"],
)
def test_a_merged_model_computes_what_the_adapted_one_does(checkpoint, tmp_path, settings):
    tuned = train_elsewhere(checkpoint, tmp_path / "adapter", r=4, **settings)
    main(["merge", str(checkpoint), str(tmp_path / "adapter"), str(tmp_path / "out")])
    merged = load_model(tmp_path / "out")
    torch.testing.assert_close(logits(merged), logits(tuned), atol=1e-4, rtol=0)
    assert (logits(merged) - logits(load_model(checkpoint))).abs().max() > 0.1
    again = PeftModel.from_pretrained(load_model(checkpoint), tmp_path / "out/adapter")
    assert torch.equal(logits(again), logits(tuned))
    for path in checkpoint.iterdir():
        if path.suffix != ".safetensors":
            assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def rename(folder):
    weights = load_file(folder / "adapter_model.safetensors")
    weights[NOWHERE] = weights.pop(min(weights))
    save_file(weights, folder / "adapter_model.safetensors")


def spoil(folder):
    weights = load_file(folder / "adapter_model.safetensors")
    weights[min(weights)].fill_(torch.nan)
    save_file(weights, folder / "adapter_model.safetensors")


def reconfigure(**fields):
    def change(folder):
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda folder: (folder / "adapter_config.json").unlink(), "found no adapter_config.json"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "found no adapter_model.safetensors"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "a configuration that peft reads"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "peft_type"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"cut"), "an adapter's weights"),
        (reconfigure(peft_type="SOMETHING"), "a configuration that peft reads"),
        (reconfigure(target_modules=["query", "value"]), "an adapter for layers of this model"),
        (reconfigure(r=None), "adapter_config.json, r: expected a number above 0, found None"),
        (reconfigure(lora_alpha="8"), "adapter_config.json, lora_alpha: expected a number above 0, found '?8"),
        (reconfigure(r=2), r"expected \[2, 32\] on this model, found \[4, 32\]"),
        (rename, "found nothing"),
        (spoil, "weights that can be merged"),
        (shutil.rmtree, "found no adapter_config.json"),
    ],
)
def test_what_is_no_adapter_of_this_model_is_one_error(checkpoint, tmp_path, harm, said):
    train_elsewhere(checkpoint, tmp_path / "adapter", r=4, target_modules=["q_proj"])
    harm(tmp_path / "adapter")
    with pytest.raises(UserError, match=said) as caught:
        main(["merge", str(checkpoint), str(tmp_path / "adapter"), str(tmp_path / "out")])
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "adapter") in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} <= {"adapter"}, "nothing half-written"


def test_other_kinds_and_matrices_that_are_used_twice_are_refused(checkpoint, tmp_path):
    train_elsewhere(checkpoint, tmp_path / "ia3", IA3Config, target_modules=["k_proj"], feedforward_modules=[])
    with pytest.raises(UserError, match=r"peft_type: expected LORA, found IA3"):
        main(["merge", str(checkpoint), str(tmp_path / "ia3"), str(tmp_path / "out")])
    train_elsewhere(checkpoint, tmp_path / "head", target_modules=["q_proj"])
    weights = load_file(tmp_path / "head/adapter_model.safetensors")
    weights["base_model.model.lm_head.lora_A.weight"] = torch.zeros(8, 32)
    save_file(weights, tmp_path / "head/adapter_model.safetensors")
    with pytest.raises(UserError, match=r"one matrix in this model, found base_model.model.lm_head"):
        main(["merge", str(checkpoint), str(tmp_path / "head"), str(tmp_path / "out")])


def test_a_folder_that_is_there_is_left_alone(checkpoint, tmp_path):
    train_elsewhere(checkpoint, tmp_path / "adapter", target_modules=["q_proj"])
    with pytest.raises(UserError, match=r"OUT: expected a folder that does not exist"):
        main(["merge", str(checkpoint), str(tmp_path / "adapter"), str(tmp_path)])
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"OUT: expected a folder that does not exist"):
        main(["merge", str(checkpoint), str(tmp_path / "adapter"), str(tmp_path / "link")])


def test_an_adapter_of_another_base_is_told_of(checkpoint, tmp_path, caplog):
    train_elsewhere(checkpoint, tmp_path / "adapter", r=4, target_modules=["q_proj"])
    path = tmp_path / "adapter/adapter_config.json"
    other = shutil.copytree(checkpoint, tmp_path / "other")
    for name, is_told in {str(checkpoint): False, str(other): True}.items():
        path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": name}))
        caplog.clear()
        main(["merge", str(checkpoint), str(tmp_path / "adapter"), str(tmp_path / f"out-{is_told}")])
        assert (f"was trained on {other}" in caplog.text) == is_told

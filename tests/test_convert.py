"""From a Qwen3 checkpoint, as transformers writes it, to an SDAR one that trains and decodes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from t3d.config import TrainConfig, load_config
from t3d.convert import convert, main
from t3d.decoding import DecodingConfig, decode
from t3d.errors import CheckpointError
from t3d.prompts import build_prompt
from t3d.sdar import SDARForCausalLM, SDARMoeForCausalLM
from t3d.sdar.checkpoint import load_model
from t3d.sdar.opening import MASK, open_checkpoint
from t3d.toy.problems import generate
from t3d.training.loop import train

SHAPE: dict[str, Any] = {
    "vocab_size": 1088,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rope_theta": 5e5,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "initializer_range": 0.3,
}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}


@pytest.fixture
def make_qwen3(checkpoint, tmp_path):
    """Writes a random tiny Qwen3; without its mask, TinyMath's tokenizer has 1079 tokens, ids 0 to 1079 but 3."""

    def build(has_mask: bool = False, **changes: Any) -> Path:
        folder = tmp_path / "qwen3"
        kind, shape = (
            (Qwen3MoeForCausalLM, Qwen3MoeConfig) if "num_experts" in changes else (Qwen3ForCausalLM, Qwen3Config)
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            kind(shape(**(SHAPE | changes))).to(torch.bfloat16).save_pretrained(folder)
        for path in checkpoint.glob("*token*"):
            text = path.read_text()
            if not has_mask:
                text = text.replace(MASK, "<|spare|>").replace('"mask_token"', '"no_token"')
            (folder / path.name).write_text(text)
        shutil.copyfile(checkpoint / "chat_template.jinja", folder / "chat_template.jinja")
        (folder / "LICENSE").write_text("Apache")
        (folder / "README.md").write_text("Qwen3's card")
        return folder

    return build


@pytest.mark.parametrize("changes", [{"tie_word_embeddings": True}, {"tie_word_embeddings": False}, EXPERTS])
def test_the_mask_takes_a_spare_row_and_all_else_stays(make_qwen3, tmp_path, changes):
    source, target = make_qwen3(**changes), tmp_path / "sdar"
    convert(source, target, 8)
    opened = open_checkpoint(str(target), 4)
    assert (opened.config.block_size, opened.mask_id, opened.assumed) == (8, 1080, ())
    before, after = load_file(source / "model.safetensors"), load_file(target / "model.safetensors")
    assert after.keys() == before.keys()
    for name, weight in after.items():
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            tokens = before[name][:1080]
            torch.testing.assert_close(weight[1080], tokens.float().mean(0).bfloat16())
            weight, before[name] = (torch.cat([rows[:1080], rows[1081:]]) for rows in (weight, before[name]))
        assert torch.equal(weight, before[name]), name
    model = load_model(target)
    assert type(model) is (SDARMoeForCausalLM if changes is EXPERTS else SDARForCausalLM)
    assert model.dtype == torch.bfloat16
    old, new = (json.loads((folder / "config.json").read_text()) for folder in (source, target))
    if "num_local_experts" in old:
        old["num_experts"] = old.pop("num_local_experts")
    changed = {"model_type", "architectures", "block_size", "mask_token_id", "rope_theta"}
    assert {name: new[name] for name in old.keys() - changed} == {name: old[name] for name in old.keys() - changed}
    assert new["rope_theta"] == 5e5
    ids, causal = torch.arange(5, 17)[None], torch.ones(12, 12, dtype=torch.bool).tril()[None, None]
    theirs = (Qwen3MoeForCausalLM if changes is EXPERTS else Qwen3ForCausalLM).from_pretrained(source, dtype="auto")
    with torch.no_grad():
        found, expected = model(ids, attention_mask=causal).logits, theirs.eval()(ids).logits
    kept = [token for token in range(1088) if token != 1080]
    torch.testing.assert_close(found[..., kept], expected[..., kept], atol=0.1, rtol=0.1)
    assert (target / "LICENSE").read_text() == "Apache"
    assert not (target / "README.md").exists()
    names = {path.name for path in target.iterdir()}
    assert ("generation_config.json" in names) == (source / "generation_config.json").is_file()


def test_embeddings_grow_where_no_row_is_to_spare(make_qwen3, tmp_path):
    convert(make_qwen3(vocab_size=1080, tie_word_embeddings=False), tmp_path / "sdar", 4)
    opened = open_checkpoint(str(tmp_path / "sdar"), 4)
    assert (opened.config.vocab_size, opened.mask_id) == (1088, 1080)
    weights = load_file(tmp_path / "sdar/model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert len(weights[name]) == 1088
        torch.testing.assert_close(weights[name][1080], weights[name][:1080].float().mean(0).bfloat16())


def test_a_mask_token_that_is_there_keeps_its_row(make_qwen3, tmp_path):
    source = make_qwen3(has_mask=True)
    convert(source, tmp_path / "sdar", 4)
    assert open_checkpoint(str(tmp_path / "sdar"), 4).mask_id == 3
    before, after = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "sdar"))
    assert all(torch.equal(weight, before[name]) for name, weight in after.items())


def edit(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: edit(folder, model_type="llama"), r'model_type "qwen3" or "qwen3_moe", found llama'),
        (lambda folder: edit(folder, model_type="sdar"), r'model_type "qwen3" or "qwen3_moe", found sdar'),
        (lambda folder: edit(folder, use_sliding_window=True), "use_sliding_window false"),
        (lambda folder: edit(folder, intermediate_size=64), r"gate_proj\.weight: \[64, 32\] in config\.json"),
        (
            lambda folder: (folder / "config.json").unlink(),
            r"config\.json: expected the model's configuration, found no",
        ),
        (lambda folder: (folder / "model.safetensors").unlink(), r"expected weights \(\*\.safetensors\), found none"),
        (lambda folder: [path.unlink() for path in folder.glob("token*")], "expected a tokenizer"),
    ],
)
def test_what_is_no_whole_qwen3_is_one_error_and_nothing_is_written(make_qwen3, tmp_path, spoil, said):
    source = make_qwen3()
    spoil(source)
    with pytest.raises(CheckpointError, match=said):
        convert(source, tmp_path / "sdar", 4)
    assert [path.name for path in tmp_path.iterdir()] == ["qwen3"]


@pytest.mark.parametrize("error", [SafetensorError("No space left on device"), OSError(28, "No space left on device")])
def test_a_full_disk_is_one_error_and_nothing_is_left(make_qwen3, tmp_path, monkeypatch, error):
    def full(model, folder, **settings) -> None:
        (folder / "model.safetensors").write_text("a part")
        raise error

    monkeypatch.setattr(SDARForCausalLM, "save_pretrained", full)
    with pytest.raises(CheckpointError, match=r"sdar: expected room to save .*, found .*No space left on device"):
        convert(make_qwen3(), tmp_path / "sdar", 4)
    assert [path.name for path in tmp_path.iterdir()] == ["qwen3"]


def test_a_target_that_exists_is_left_alone(make_qwen3, tmp_path):
    (tmp_path / "sdar").mkdir()
    with pytest.raises(CheckpointError, match="sdar: expected a folder that does not exist yet"):
        main([str(make_qwen3()), str(tmp_path / "sdar")])
    assert not list((tmp_path / "sdar").iterdir())


@pytest.mark.parametrize("kind", ["answers", "texts"])
def test_it_trains_with_sizes_of_blocks_drawn_per_sample_and_decodes(make_qwen3, tmp_path, kind, caplog):
    """Continued training as after a conversion: the loss falls, and the student decodes at any of the sizes."""
    caplog.set_level("INFO")
    main([str(make_qwen3(initializer_range=0.05)), str(tmp_path / "sdar"), "--block-size", "8"])
    problems = [problem for problem, _ in zip(generate("train"), range(16), strict=False)]
    texts = [{"text": f"{problem['question']}\n{problem['answer']}"} for problem in problems]
    (tmp_path / "data.json").write_text(json.dumps(problems if kind == "answers" else texts))
    keys = [
        f"model.pretrained_model={tmp_path / 'sdar'}",
        f"dataset.optimization_data={tmp_path / 'data.json'}",
        f"experiment.output_dir={tmp_path / 'run'}",
        "training.objective=sft",
        "training.block_size_choices=[1,2,4,8]",
        f"training.max_gen_length={1024 if kind == 'answers' else 36}",
        "training.max_steps=12",
        "training.batch_size_lm=16",
        "training.gradient_accumulation_steps=1",
        "training.mixed_precision=no",
        "training.gradient_checkpointing_enable=false",
        "optimizer.params.learning_rate=1e-2",
        "lr_scheduler.params.warmup_steps=0",
    ]
    student = train(load_config(TrainConfig, keys, "", ""))
    assert ("pieces of at most 32 tokens, each a sample" in caplog.text) == (kind == "texts")
    losses = [json.loads(line)["loss/total"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    model, tokenizer = load_model(student), AutoTokenizer.from_pretrained(student)
    _, prompt = build_prompt(tokenizer, problems[0], "math")
    for size in (1, 8):
        (decoded,) = decode(model, [prompt], DecodingConfig(1080, size, 1, max_new_tokens=8))
        assert decoded.error is None
        assert len(decoded.response_ids) == 8
        assert 1080 not in decoded.response_ids

"""Published configurations, unchanged: what they leave out, what they say too much, what contradicts."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from t3d.errors import CheckpointError
from t3d.sdar import SDARConfig, SDARForCausalLM
from t3d.sdar.backend import ATTENTION
from t3d.sdar.checkpoint import default_stop_ids, load_decoder, load_model, load_model_config, load_tokenizer
from t3d.sdar.opening import open_checkpoint
from t3d.sdar.weights import HEAD, INDEX, SINGLE
from t3d.training.memory import SHAPES, main, shapes_asked

from .checkpoints import DENSE, PUBLISHED, SHARED, publish

IDS = torch.arange(8)[None]


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs shared/data/sdar-configs")
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_tests_configurations_are_the_published_ones(name):
    assert json.loads((SHARED / "sdar-configs" / f"{name}.config.json").read_text()) == PUBLISHED[name]


@pytest.mark.parametrize("name", DENSE)
def test_what_a_configuration_leaves_out_is_completed_and_said_once(tokenizer_folder, tmp_path, caplog, name):
    folder = publish(name, tmp_path / name, tokenizer_folder)
    mask = load_tokenizer(folder).get_vocab()["<|MASK|>"]
    with caplog.at_level(logging.INFO, "t3d"):
        opened = [open_checkpoint(str(folder), 8) for _ in range(2)][1]
    bare = name.endswith("bare")
    assert opened.config.mask_token_id == opened.mask_id == mask
    assert opened.config.block_size == (8 if bare else 4)
    assert opened.folder == folder
    expected = [
        f"{folder}/config.json has no mask_token_id: {mask} is used, the tokenizer's <|MASK|>",
        f"{folder}/config.json has no block_size: 8 is used, this run's",
    ]
    assert caplog.messages == list(opened.assumed) == (expected if bare else [])
    for model in (
        load_model(folder, config=opened.config),
        load_model(folder, random_init=True, config=opened.config),
        load_decoder(folder, "auto", torch.device("cpu"), config=opened.config),
    ):
        assert (model.config.block_size, model.config.mask_token_id) == (opened.config.block_size, mask)


def test_in_a_launch_the_first_process_says_it(checkpoint, tmp_path, caplog, monkeypatch):
    folder = publish("SDAR-8B-Chat.bare", tmp_path / "bare", checkpoint)
    monkeypatch.setenv("RANK", "1")
    with caplog.at_level(logging.INFO, "t3d"):
        assert len(open_checkpoint(str(folder), 4).assumed) == 2
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mask_token_id": 7}, "config.json, mask_token_id: expected 3, the tokenizer's <|MASK|>, found 7"),
        ({"vocab_size": 900}, "config.json, vocab_size: expected at least 1080, as the tokenizer has ids, found 900"),
        ({"mask_token_id": 2000}, "mask_token_id: expected an id below vocab_size 1080, found 2000"),
    ],
)
def test_values_that_contradict_the_tokenizer_are_one_error(checkpoint, tmp_path, changes, said):
    folder = publish("SDAR-4B-Chat", tmp_path / "model", checkpoint, **changes)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(folder), 4)
    assert str(caught.value).startswith(str(folder))
    assert str(caught.value).endswith(said)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_act": "nonsense"}, "a value that transformers does not know, 'nonsense'"),
        ({"torch_dtype": "bf8"}, "bf8"),
        ({"hidden_size": -1}, "negative dimension -1"),
        ({"num_key_value_heads": 3}, "num_attention_heads: expected a multiple of num_key_value_heads = 3, found 4"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "expected full_attention alone, found sliding"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized weights are not supported, found gptq"),
    ],
)
def test_values_that_make_no_network_are_one_error(checkpoint, tmp_path, changes, said):
    folder = publish("SDAR-4B-Chat", tmp_path / "model", checkpoint)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(CheckpointError) as caught:
        load_model_config(folder)
    assert str(caught.value).startswith(f"{path}: expected ")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: min(folder.glob("*-of-*")).unlink(), "files of weights missing, such as model-00001-of-"),
        (lambda folder: (folder / INDEX).unlink(), f"neither {SINGLE} nor {INDEX}"),
        (lambda folder: (folder / INDEX).write_text("{"), f"{INDEX} that cannot be read (JSONDecodeError"),
        (lambda folder: (folder / INDEX).write_text("[]"), f"{INDEX} that cannot be read (TypeError"),
        (lambda folder: (folder / INDEX).write_text('{"weight_map": {}}'), "no metadata, which transformers reads"),
        (lambda folder: min(folder.glob("*-of-*")).write_text("version https://git-lfs"), "which is not whole"),
    ],
)
def test_files_of_weights_that_are_not_whole_are_one_error(checkpoint, tmp_path, spoil, said):
    folder = publish("SDAR-4B-Chat", tmp_path / "model", checkpoint, "60KB")
    spoil(folder)
    with pytest.raises(CheckpointError) as caught:
        load_model(folder)
    assert str(caught.value).startswith(f"{folder}: expected the weights that its config.json asks for, found ")
    assert said in str(caught.value)


def test_weights_of_another_shape_are_named_in_one_line(checkpoint, tmp_path, capfd):
    folder = publish("SDAR-4B-Chat", tmp_path / "model", checkpoint)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"intermediate_size": 65}))
    with pytest.raises(CheckpointError, match=r"mlp\.gate_proj\.weight: \[65, 32\] in .*, \[64, 32\] in the weights$"):
        load_model(folder)
    assert capfd.readouterr().err == ""


def changed_weights(folder: Path, change: Callable[[dict[str, Tensor]], Any], **config: Any) -> Path:
    """A model folder whose weights (and configuration) are changed."""
    weights = load_file(folder / SINGLE)
    change(weights)
    save_file(weights, folder / SINGLE, {"format": "pt"})
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


BIAS, INTEGERS = "model.layers.0.self_attn.q_proj.bias", "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "config", "said"),
    [
        (lambda weights: None, {"num_hidden_layers": 1}, "that config.json has no place for, such as layers.1."),
        (lambda weights: weights.update({BIAS: torch.zeros(32)}), {}, f"1 that .* such as {BIAS[6:]}"),
        (
            lambda weights: weights.update({INTEGERS: weights[INTEGERS].to(torch.int8)}),
            {},
            f"{INTEGERS} of the type I8",
        ),
        (
            lambda weights: weights.update({HEAD: 2 * weights["model.embed_tokens.weight"]}),
            {"tie_word_embeddings": True},
            f"{HEAD} that differs from the embeddings",
        ),
    ],
)
def test_weights_of_another_network_are_refused(checkpoint, tmp_path, change, config, said):
    folder = changed_weights(publish("SDAR-4B-Chat", tmp_path / "model", checkpoint), change, **config)
    with pytest.raises(CheckpointError, match=said):
        load_model(folder)


def test_a_head_that_is_stored_beside_the_embeddings_and_what_networks_compute_do_no_harm(checkpoint, tmp_path):
    def change(weights):
        weights[HEAD] = weights["model.embed_tokens.weight"].clone()
        weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)

    folder = changed_weights(publish("SDAR-4B-Chat", tmp_path / "model", checkpoint), change, tie_word_embeddings=True)
    model = load_model(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_stop_tokens_that_are_no_ids_are_one_error(checkpoint, tmp_path):
    folder = publish("SDAR-4B-Chat", tmp_path / "model", checkpoint)
    (folder / "generation_config.json").write_text('{"eos_token_id": ["<|im_end|>"]}')
    with pytest.raises(
        CheckpointError, match=r"generation_config\.json: expected eos_token_id, an id .*, found <\|im_"
    ):
        default_stop_ids(folder, load_tokenizer(folder))


def test_no_mask_token_anywhere_is_one_error(checkpoint, tmp_path):
    folder = publish("SDAR-8B-Chat.bare", tmp_path / "model", checkpoint)
    for path in folder.glob("*token*.json"):
        text = path.read_text()
        path.write_text(text.replace("<|MASK|>", "<|other|>").replace('"mask_token"', '"no_token"'))
    with pytest.raises(
        CheckpointError, match=r"mask_token_id: expected an id, or a tokenizer that has .*, found neither"
    ):
        open_checkpoint(str(folder), 4)


@torch.no_grad()
@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "_attn_implementation_internal"])
@pytest.mark.parametrize("value", ["flex_attention", "flash_attention_2", "eager"])
def test_the_attention_is_ours_whatever_the_file_says(checkpoint, tmp_path, key, value):
    folder = publish("SDAR-4B-Chat", tmp_path / "model", checkpoint, **{"attn_implementation": "REMOVE", key: value})
    models = [
        load_model(folder),
        SDARForCausalLM.from_pretrained(folder, dtype="auto"),  # transformers 4.57 would take float32
        AutoModelForCausalLM.from_pretrained(folder, dtype="auto"),
        SDARForCausalLM(SDARConfig.from_pretrained(folder)),
    ]
    assert [model.config._attn_implementation for model in models] == [ATTENTION] * 4
    assert all(torch.equal(model(IDS).logits, models[0](IDS).logits) for model in models[1:3])


@torch.no_grad()
@pytest.mark.parametrize("load", [SDARForCausalLM.from_pretrained, AutoModelForCausalLM.from_pretrained])
def test_a_caller_may_still_choose_eager_attention(checkpoint, tmp_path, load):
    folder = publish("SDAR-4B-Chat", tmp_path / "model", checkpoint)
    eager = load(folder, attn_implementation="eager", dtype=torch.float32)
    assert eager.config._attn_implementation == "eager"
    torch.testing.assert_close(eager(IDS).logits, load(folder, dtype=torch.float32)(IDS).logits)


@torch.no_grad()
def test_without_a_block_size_only_a_forward_without_mask_is_refused(checkpoint, tmp_path):
    folder = publish("SDAR-8B-Chat.bare", tmp_path / "bare", checkpoint)
    model = SDARForCausalLM.from_pretrained(folder, dtype="auto")
    with pytest.raises(ValueError, match=r"config\.block_size: expected positions per block where no mask is given"):
        model(IDS)
    everything = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    assert torch.equal(model(IDS, everything).logits, load_model(folder)(IDS, everything).logits)
    assert {"block_size", "mask_token_id"}.isdisjoint(model.config.to_dict())


def test_the_memory_estimate_needs_a_configuration_and_nothing_else(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED["SDAR-8B-Chat.bare"]))
    assert list(shapes_asked(str(tmp_path))) == [str(tmp_path), *SHAPES]
    main([f"model.pretrained_model={tmp_path}", "dataset.optimization_data=none", "num_gpus=8"])
    assert f"{tmp_path}: 8.19e9 parameters" in capsys.readouterr().out

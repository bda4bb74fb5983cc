"""Published SDAR configurations with small networks behind them, as a user's download looks."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

SHARED = Path(__file__).parents[3] / "shared" / "data"
TOKENIZER = SHARED / "sdar-tokenizer"

_CODE = {
    "auto_map": {
        "AutoConfig": "configuration_sdar.SDARConfig",
        "AutoModel": "modeling_sdar.SDARModel",
        "AutoModelForCausalLM": "modeling_sdar.SDARForCausalLM",
    },
    "attn_implementation": "flex_attention",
    "debug": False,
    "ep_size": 1,
    "fuse_cross_entropy": True,
    "micro_forward": False,
    "skip_checkpoint": False,
    "use_deepep": False,
}
"""What the authors' training code left in the files."""

_QWEN3 = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "head_dim": 128,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 32768,
    "num_attention_heads": 32,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 151936,
}
_DENSE = _QWEN3 | {
    "architectures": ["SDARForCausalLM"],
    "max_window_layers": 36,
    "model_type": "sdar",
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "transformers_version": "4.52.4",
    "use_cache": False,
}
_MIXTURE = _QWEN3 | {
    "architectures": ["SDARMoeForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_sdar_moe.SDARMoeConfig",
        "AutoModel": "modeling_sdar_moe.SDARMoeModel",
        "AutoModelForCausalLM": "modeling_sdar_moe.SDARMoeForCausalLM",
    },
    "decoder_sparse_step": 1,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "max_window_layers": 48,
    "mlp_only_layers": [],
    "model_type": "sdar_moe",
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
    "transformers_version": "4.51.0",
    "use_cache": True,
}
_4B = {"hidden_size": 2560, "intermediate_size": 9728, "block_size": 4, "mask_token_id": 151669}
_8B = {"hidden_size": 4096, "intermediate_size": 12288}
PUBLISHED: dict[str, dict[str, Any]] = {
    "SDAR-4B-Chat": _DENSE | _CODE | _4B,
    "SDAR-8B-Chat.bare": _DENSE | _CODE | _8B,
    "SDAR-30B-A3B-Chat": _MIXTURE,
}
DENSE = ("SDAR-4B-Chat", "SDAR-8B-Chat.bare")

EXPERTS = ("norm_topk_prob", "decoder_sparse_step", "mlp_only_layers")

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "max_window_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
SMALL_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
REMOTE_CODE = 'raise RuntimeError("remote code ran")\n'


def publish(name: str, folder: Path, tokenizer: Path, shard_size: str = "5GB", **changes: Any) -> Path:
    """Writes a model folder with the configuration `name`, shrunk, and random bf16 weights under the hub's names.

    Args:
        name: one of `PUBLISHED`.
        folder: to write.
        tokenizer: a folder with one; ids of the configuration follow it where it is not SDAR's.
        shard_size: of the weights' files.
        **changes: fields of the configuration, "REMOVE" to leave one out.
    """
    fields = PUBLISHED[name] | SMALL
    kind, shape_of = (Qwen3ForCausalLM, Qwen3Config)
    if fields["model_type"] == "sdar_moe":
        fields |= SMALL_EXPERTS
        kind, shape_of = (Qwen3MoeForCausalLM, Qwen3MoeConfig)
    if tokenizer != TOKENIZER:
        special = {"vocab_size": 1080, "bos_token_id": 0, "eos_token_id": 0, "mask_token_id": 3}
        fields |= {key: value for key, value in special.items() if key in fields}
    fields = {key: value for key, value in (fields | changes).items() if value != "REMOVE"}
    folder.mkdir(parents=True)
    shape = {key: value for key, value in fields.items() if key in (*SMALL, *SMALL_EXPERTS, *EXPERTS, "vocab_size")}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = kind(shape_of(**shape, rope_theta=1e6, initializer_range=0.2))
    network.to(torch.bfloat16).save_pretrained(folder, max_shard_size=shard_size)
    (folder / "config.json").write_text(json.dumps(fields, indent=2))
    for module in {target.split(".")[0] for target in fields.get("auto_map", {}).values()}:
        (folder / f"{module}.py").write_text(f"# {module}\n{REMOTE_CODE}")
    for path in tokenizer.iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            shutil.copyfile(path, folder / path.name)
    return folder

"""SDAR as a mixture of experts: Qwen3-MoE's blocks in place of dense MLPs, all else as in the dense network.

Checkpoints name every expert (`mlp.experts.3.up_proj.weight`), and so does the network of transformers 4.  From 5 on a
layer's experts are two stacks (`mlp.experts.gate_up_proj` [experts, 2 * width, hidden], `mlp.experts.down_proj`
[experts, hidden, width]), which one grouped product reads; transformers stacks them as it loads a checkpoint, and cuts
them apart as it saves one.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3MoeConfig
from transformers import __version__ as version
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from t3d.devices import GROUPED, capability
from t3d.sdar.configuration import SDARConfig
from t3d.sdar.modeling import SDARForCausalLM

STACKED = int(version.split(".")[0]) >= 5
"""Whether a layer's experts are stacked."""

COUNTS = ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "decoder_sparse_step")
"""Fields of the configuration, all at least 1."""


class SDARMoeConfig(SDARConfig):
    """`config.json` with `model_type: "sdar_moe"`; the fields that the dense network lacks are Qwen3-MoE's.

    Attributes:
        num_experts: experts of a sparse layer.
        num_experts_per_tok: experts that each token goes to.
        moe_intermediate_size: width of an expert.
        norm_topk_prob: whether the weights of a token's experts are made to sum to 1.
        decoder_sparse_step: every n-th layer is sparse, counted from 1.
        mlp_only_layers: numbers of layers that are dense all the same, counted from 0.
        router_aux_loss_coef: what the authors weighted their balance loss with; `training.router_aux_weight` is ours.
    """

    model_type = "sdar_moe"
    base_model_tp_plan = Qwen3MoeConfig.base_model_tp_plan

    def __init__(
        self,
        num_experts: int = 128,
        num_experts_per_tok: int = 8,
        moe_intermediate_size: int = 768,
        norm_topk_prob: bool = False,
        decoder_sparse_step: int = 1,
        mlp_only_layers: list[int] | None = None,
        router_aux_loss_coef: float = 0.001,
        **kwargs: Any,
    ) -> None:
        """Takes Qwen3's fields, too, as keywords; what is left out is as in Qwen3-MoE.

        Raises:
            ValueError: a number that cannot be.
        """
        counts = (num_experts, num_experts_per_tok, moe_intermediate_size, decoder_sparse_step)
        for name, value in zip(COUNTS, counts, strict=True):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, found {value}")
        if num_experts_per_tok > num_experts:
            raise ValueError(
                f"num_experts_per_tok: expected at most num_experts = {num_experts}, found {num_experts_per_tok}"
            )
        self.num_experts, self.num_experts_per_tok = num_experts, num_experts_per_tok
        self.moe_intermediate_size, self.norm_topk_prob = moe_intermediate_size, norm_topk_prob
        self.decoder_sparse_step, self.mlp_only_layers = decoder_sparse_step, mlp_only_layers or []
        self.router_aux_loss_coef = router_aux_loss_coef
        super().__init__(**kwargs)

    def is_sparse(self, layer: int) -> bool:
        """Whether a layer, counted from 0, has experts."""
        return layer not in self.mlp_only_layers and (layer + 1) % self.decoder_sparse_step == 0

    @property
    def mlp_width(self) -> int:
        """Numbers per token of what a layer's MLP holds at a time: each expert has its own copy of input and output."""
        experts = self.num_experts_per_tok * (self.moe_intermediate_size + self.hidden_size)
        return max(self.intermediate_size, experts)


class SparseMLP(Qwen3MoeSparseMoeBlock):
    """Qwen3-MoE's router and experts, for rows of any layout."""

    experts: Any

    def __init__(self, config: SDARMoeConfig) -> None:
        """Makes the weights of one layer."""
        super().__init__(config)  # type: ignore[arg-type]
        self.num_per_row, self.normalised = config.num_experts_per_tok, config.norm_topk_prob
        experts = 3 * config.moe_intermediate_size * config.num_experts_per_tok
        self.weights_per_row = config.hidden_size * (config.num_experts + experts)  # that a row is multiplied with
        if STACKED:
            self.experts.config = copy.copy(config)

    def forward(self, hidden_states: Float[Tensor, "*rows hidden"]) -> Float[Tensor, "*rows hidden"]:
        """Each row's mixture of its experts."""
        if STACKED:
            self._choose_product(hidden_states)
        mixed: Any = super().forward(hidden_states.reshape(1, -1, hidden_states.shape[-1]))
        rows = mixed if STACKED else mixed[0]  # transformers 4 gives the router's logits beside them
        return rows.view_as(hidden_states)

    def _choose_product(self, rows: Tensor) -> None:
        """One grouped product of all experts on a GPU; elsewhere one after the other.

        The grouped product has no double precision, and wants rows of whole 16 bytes.
        """
        chosen = "grouped_mm" if rows.is_cuda and rows.dtype != torch.float64 else "eager"
        if self.experts.config._experts_implementation != chosen:
            self.experts.config._experts_implementation = chosen


class SDARMoeForCausalLM(SDARForCausalLM):
    """A block-diffusion mixture of experts; parameter names of checkpoints are Qwen3-MoE's."""

    config_class = SDARMoeConfig
    config: SDARMoeConfig

    def __init__(self, config: SDARMoeConfig) -> None:
        """Builds the network with random weights."""
        super().__init__(config)
        for number, layer in enumerate(self.model.layers):
            if config.is_sparse(number):
                layer.mlp = SparseMLP(config)
                for weight in layer.mlp.parameters():
                    nn.init.normal_(weight, std=config.initializer_range)


NETWORKS: dict[str, tuple[type[SDARConfig], type[SDARForCausalLM]]] = {
    "sdar": (SDARConfig, SDARForCausalLM),
    "sdar_moe": (SDARMoeConfig, SDARMoeForCausalLM),
}
"""Configuration and network by the `model_type` of `config.json`."""


def build_network(config: SDARConfig) -> SDARForCausalLM:
    """A network of this shape with random weights."""
    return NETWORKS[config.model_type][1](config)


class Expert(NamedTuple):
    """Weights of one expert: down(silu(gate(x)) * up(x))."""

    gate: Float[Tensor, "width hidden"]
    up: Float[Tensor, "width hidden"]
    down: Float[Tensor, "hidden width"]


def waits_for_device(config: SDARConfig, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a network's forward waits for a CUDA device between products, so that it cannot be recorded.

    Without stacks, and with them where there is no grouped product, something asks how many rows each expert has.
    """
    level = capability(device) if isinstance(config, SDARMoeConfig) else None
    return level is not None and not (STACKED and level[0] in GROUPED and dtype == torch.bfloat16)


def experts_of(mlp: SparseMLP) -> Iterator[Expert]:
    """The weights of a layer's experts, however the installed transformers keeps them."""
    experts: Any = mlp.experts
    if not STACKED:
        for expert in experts:
            yield Expert(expert.gate_proj.weight, expert.up_proj.weight, expert.down_proj.weight)
        return
    for both, down in zip(experts.gate_up_proj, experts.down_proj, strict=True):
        gate, up = both.chunk(2)
        yield Expert(gate, up, down)


def stored_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A network's weights under the names that a checkpoint has for them."""
    stored: dict[str, Tensor] = {}
    for name, weight in weights.items():
        layer, is_expert, kind = name.partition(".mlp.experts.")
        if not is_expert or kind not in ("gate_up_proj", "down_proj"):
            stored[name] = weight
            continue
        for number, expert in enumerate(weight):
            parts = (
                {"down_proj": expert}
                if kind == "down_proj"
                else dict(zip(("gate_proj", "up_proj"), expert.chunk(2), strict=True))
            )
            stored |= {f"{layer}.mlp.experts.{number}.{part}.weight": matrix for part, matrix in parts.items()}
    return stored


@dataclass(frozen=True)
class Routing:
    """What the routers of a forward said.

    Attributes:
        num_per_token: experts that each token went to.
        logits: [rows, experts] of each sparse layer, one after the other.
    """

    num_per_token: int
    logits: list[Tensor]


@contextmanager
def recorded_routing(network: nn.Module) -> Iterator[Routing]:
    """Records the routing of a forward within.

    Args:
        network: a mixture of experts, in whatever wraps it.
    """
    sparse = [module for module in network.modules() if isinstance(module, SparseMLP)]
    routing = Routing(sparse[0].num_per_row, [])

    def keep(_router: nn.Module, _inputs: Any, output: Any) -> None:
        routing.logits.append(output[0] if STACKED else output)

    with ExitStack() as hooks:
        for mlp in sparse:
            hooks.callback(mlp.gate.register_forward_hook(keep).remove)
        yield routing


def _register() -> None:
    AutoConfig.register("sdar_moe", SDARMoeConfig)
    AutoModelForCausalLM.register(SDARMoeConfig, SDARMoeForCausalLM)
    if STACKED:
        from transformers.conversion_mapping import (
            get_checkpoint_conversion_mapping,
            register_checkpoint_conversion_mapping,
        )

        register_checkpoint_conversion_mapping("sdar_moe", get_checkpoint_conversion_mapping("qwen3_moe"))


_register()

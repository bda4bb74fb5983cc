"""SDAR: transformers' Qwen3 with block-causal attention and unshifted logits."""

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3ForCausalLM
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from t3d.sdar.attention import block_causal_mask
from t3d.sdar.backend import ATTENTION, AttentionPlan, CachedPlan
from t3d.sdar.configuration import SDARConfig
from t3d.sdar.last_layer import LastLayer
from t3d.sdar.rotary import ExactRotaryEmbedding


class SDARForCausalLM(Qwen3ForCausalLM):
    """A block-diffusion language model: the logits at a position predict THAT position's token.

    Parameter names, and so checkpoints, are Qwen3's.
    """

    config_class: type[SDARConfig] = SDARConfig
    config: SDARConfig

    def __init__(self, config: SDARConfig) -> None:
        """Builds the network with random weights; where transformers would choose sdpa, `backend.attention` is used."""
        super().__init__(config)
        if self.config._attn_implementation == "sdpa":
            self.config._attn_implementation = ATTENTION
        self.model.layers[-1].__class__ = LastLayer  # the same weights under the same names
        self.model.rotary_emb.__class__ = ExactRotaryEmbedding

    def forward(
        self,
        input_ids: Int[Tensor, "batch seq"],
        attention_mask: Bool[Tensor, "batch 1 seq key"] | AttentionPlan | None = None,
        position_ids: Int[Tensor, "batch seq"] | None = None,
        past_key_values: Cache | None = None,
        logit_rows: Int[Tensor, " rows"] | None = None,
        head: Callable[[torch.nn.Module, Float[Tensor, "*rows hidden"]], Any] | None = None,
    ) -> Any:
        """Runs the network once.

        Args:
            input_ids: token ids, the mask token where nothing is revealed.
            attention_mask: True where a query may see a key, or a plan (one row of tokens); None means
                block-causal by `config.block_size` over `position_ids`.
            position_ids: position of each token; None means 0, 1, 2, ...
            past_key_values: a cache that `update` writes to and returns the keys and values to attend to.
            logit_rows: where logits are wanted, as places in the flattened [batch * seq].  The output head is the
                largest matrix of a small model, and most rows need neither it nor most of the last layer.
            head: called with the output head and the final hidden states (at `logit_rows`) in place of applying
                the one to the other; a loss computed in here runs inside whatever wraps the model (DDP, ZeRO).

        Returns:
            `logits` [batch, seq, vocab], or [rows, vocab] when `logit_rows` is given; with `head`, what it returns.

        Raises:
            ValueError: no mask although there is a cache (its layout would have to be guessed) or no block size; a
                mask that is not 4-dimensional; an attention implementation that would not honour one.
        """
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        if past_key_values is not None and not isinstance(attention_mask, Tensor):
            found = type(attention_mask).__name__
            raise ValueError(f"attention_mask: expected a mask over the cached keys, found {found}")
        if attention_mask is None:
            attention_mask = self._block_causal(position_ids)
        if isinstance(attention_mask, Tensor):
            if attention_mask.dim() != 4:
                raise ValueError(f"attention_mask: expected [batch, 1, seq, key], found {list(attention_mask.shape)}")
            if past_key_values is not None:
                attention_mask = CachedPlan(past_key_values, attention_mask)
        hidden: Float[Tensor, "batch seq hidden"] = self.model(
            input_ids=input_ids,
            attention_mask={"full_attention": self._backend_mask(attention_mask)},
            position_ids=position_ids,
            use_cache=False,  # of transformers', whose argument for it changes its name between releases
            logit_rows=logit_rows,
        ).last_hidden_state
        rows = hidden if logit_rows is None else hidden[0]
        return CausalLMOutputWithPast(logits=self.lm_head(rows)) if head is None else head(self.lm_head, rows)

    def _block_causal(self, position_ids: Int[Tensor, "batch seq"]) -> Bool[Tensor, "batch 1 seq seq"]:
        block_size = self.config.block_size
        if block_size is None:
            raise ValueError("config.block_size: expected positions per block where no mask is given, found none")
        return block_causal_mask(position_ids, position_ids, block_size)[:, None]

    def _backend_mask(self, mask: Bool[Tensor, "batch 1 seq key"] | AttentionPlan) -> Tensor | AttentionPlan:
        """The mask as the attention takes it: eager adds it to the scores, some others ignore it."""
        implementation = self.config._attn_implementation
        if isinstance(mask, AttentionPlan):
            if implementation != ATTENTION:
                raise ValueError(f"attn_implementation: expected sdpa for an attention plan, found {implementation}")
            return mask
        if implementation in ("sdpa", ATTENTION):
            return mask
        if implementation != "eager":
            raise ValueError(f"attn_implementation: expected sdpa or eager, found {implementation}")
        return torch.zeros(mask.shape, dtype=self.dtype, device=mask.device).masked_fill(
            ~mask, torch.finfo(self.dtype).min
        )

    def recompute_activations(self, num_layers: int | None = None) -> None:
        """Keeps no activations inside a layer for the backward pass: less memory, one more forward.

        Args:
            num_layers: how many layers, counted from the first; None: all.  The backward pass comes to the first ones
                last, when the others' activations are gone.
        """
        newer = "activation_checkpointing_enable" in dir(self)  # transformers' name from 5.x on
        enable = self.activation_checkpointing_enable if newer else self.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        for number, layer in enumerate(self.model.layers):
            layer.gradient_checkpointing = num_layers is None or number < num_layers

    def generate(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuses: token-by-token generation is not how this model decodes; `t3d.decoding.decode` is."""
        raise NotImplementedError("SDAR decodes block by block: use t3d.decoding.decode")


AutoConfig.register("sdar", SDARConfig)
AutoModelForCausalLM.register(SDARConfig, SDARForCausalLM)

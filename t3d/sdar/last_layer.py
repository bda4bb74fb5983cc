"""The network's last layer, which works for the rows alone that anything reads."""

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, apply_rotary_pos_emb

from t3d.sdar.backend import ATTENTION, attention


class LastLayer(Qwen3DecoderLayer):
    """Qwen3's layer, or that layer at some rows.

    Behind the last layer no token looks at another one.  So where logits are wanted at some rows only, the others
    need nothing of this layer but their keys and values, which the wanted rows see; queries, output projection and
    MLP are computed at the wanted rows.  In decoding those are the masked positions (not the block that is being
    committed, the revealed tokens, or a prompt), in training the noisy ones.
    """

    def forward(
        self,
        hidden_states: Float[Tensor, "batch seq hidden"],
        attention_mask: Any = None,
        logit_rows: Int[Tensor, " rows"] | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> Float[Tensor, "..."]:
        """Runs the layer.

        Args:
            hidden_states: of every token.
            attention_mask: a mask or a plan.
            logit_rows: places of the wanted rows in the flattened [batch * seq]; None wants all.
            position_embeddings: cosine and sine of the rotation.
            **kwargs: what transformers passes to each layer.

        Returns:
            Hidden states [batch, seq, hidden], or [1, rows, hidden] of the wanted rows.
        """
        if logit_rows is None or self.self_attn.config._attn_implementation != ATTENTION:
            every = super().forward(
                hidden_states, attention_mask=attention_mask, position_embeddings=position_embeddings, **kwargs
            )
            return every if logit_rows is None else every.flatten(0, 1).index_select(0, logit_rows)[None]
        rows = hidden_states.flatten(0, 1).index_select(0, logit_rows)
        rows = rows + self._attend(hidden_states, attention_mask, logit_rows, position_embeddings)
        return (rows + self.mlp(self.post_attention_layernorm(rows)))[None]

    def _attend(
        self,
        hidden_states: Float[Tensor, "batch seq hidden"],
        attention_mask: Any,
        logit_rows: Int[Tensor, " rows"],
        position_embeddings: Any,
    ) -> Float[Tensor, "rows hidden"]:
        """The attention's output at the wanted rows."""
        module = self.self_attn
        heads = (-1, module.head_dim)
        normed = self.input_layernorm(hidden_states)
        wanted = normed.flatten(0, 1).index_select(0, logit_rows)
        queries = module.q_norm(module.q_proj(wanted).unflatten(-1, heads))
        key = module.k_norm(module.k_proj(normed).unflatten(-1, heads)).transpose(1, 2)
        value = module.v_proj(normed).unflatten(-1, heads).transpose(1, 2)
        # The rows that are not wanted ask with zeros, and nobody reads the answer: masks and plans stay as they are.
        every = queries.new_zeros(hidden_states.shape[0] * hidden_states.shape[1], *queries.shape[1:])
        query = every.index_copy(0, logit_rows, queries).unflatten(0, hidden_states.shape[:2]).transpose(1, 2)
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        seen, _ = attention(module, query, key, value, attention_mask, module.scaling)
        return module.o_proj(seen.flatten(0, 1).index_select(0, logit_rows).flatten(1))

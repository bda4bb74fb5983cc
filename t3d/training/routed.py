"""The experts of a mixture in sizes alone, for the memory estimate: where a token goes depends on no number."""

from contextlib import nullcontext

import torch
from jaxtyping import Float
from torch import Tensor, nn

from t3d.sdar.mixture import STACKED, SDARMoeConfig


class EvenExperts(nn.Module):
    """Keeps for the backward pass what `SparseMLP` keeps: each token's row once per expert that it goes to."""

    def __init__(self, config: SDARMoeConfig, dtype: torch.dtype) -> None:
        """Makes a router, and one expert in place of all."""
        super().__init__()
        hidden, width = config.hidden_size, config.moe_intermediate_size
        self.num_per_row, self.normalised = config.num_experts_per_tok, config.norm_topk_prob
        self.gate = nn.Linear(hidden, config.num_experts, bias=False, dtype=dtype)
        self.gate_up_proj = nn.Linear(hidden, 2 * width, bias=False, dtype=dtype)
        self.down_proj = nn.Linear(width, hidden, bias=False, dtype=dtype)

    def forward(self, hidden_states: Float[Tensor, "*rows hidden"]) -> Float[Tensor, "*rows hidden"]:
        """What `SparseMLP` would compute if all experts were one."""
        shares = self.gate(hidden_states).float().softmax(-1).topk(self.num_per_row, -1).values
        if self.normalised:
            shares = shares / shares.sum(-1, keepdim=True)
        # Grouped products know nothing of autocast.
        with torch.autocast(hidden_states.device.type, enabled=False) if STACKED else nullcontext():
            copies = hidden_states[..., None, :].repeat_interleave(self.num_per_row, -2)
            gate, up = self.gate_up_proj(copies).chunk(2, -1)
            experts = self.down_proj(nn.functional.silu(gate) * up)
        return (experts * shares.to(experts.dtype)[..., None]).sum(-2)

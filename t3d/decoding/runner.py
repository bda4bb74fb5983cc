"""The forward itself: from staged inputs to what is drawn at the masked positions, still on the device."""

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from t3d.decoding.buckets import Buffers
from t3d.decoding.config import DecodingConfig
from t3d.decoding.draws import Draws, join, judge, row_tiles
from t3d.decoding.kernel import Kernel
from t3d.decoding.stage import Staged
from t3d.sdar.modeling import SDARForCausalLM


class Runner:
    """Calls the network on what is staged.

    Attributes:
        buffers: where steps are padded to and staged; None pads nothing.
    """

    buffers: Buffers | None = None

    def __init__(self, model: SDARForCausalLM, config: DecodingConfig, kernel: Kernel) -> None:
        """Remembers what every forward needs."""
        self.model, self.config, self.kernel = model, config, kernel
        self.tiles = row_tiles(model.config.vocab_size, model.dtype, model.device)

    def run(self, staged: Staged) -> Draws | None:
        """One entry per masked position; None if there are none."""
        draws = self.forward(staged)
        return draws if draws is None or staged.bucket is None else draws.at(slice(staged.num_rows))

    def forward(self, staged: Staged) -> Draws | None:
        """One entry per row, padding included; reads nothing of the host's that changes within a bucket."""
        with self.kernel.within():
            return self.model(
                staged.ids,
                attention_mask=staged.plan,
                position_ids=staged.positions,
                logit_rows=staged.rows,
                head=partial(self._draw, staged=staged),
            )

    def _draw(self, head: torch.nn.Module, hidden: Float[Tensor, "rows hidden"], staged: Staged) -> Draws | None:
        """Applies the output head and draws: as many rows at a time as `RowTiles` says."""
        if not len(hidden):
            return None
        drawn: list[Draws] = []
        for start in range(0, len(hidden), self.tiles.product):
            logits = head(hidden[start : start + self.tiles.product])
            for tile in logits.split(self.tiles.judged):
                first = sum(len(draws.tokens) for draws in drawn)
                uniforms = None if staged.uniforms is None else staged.uniforms[first : first + len(tile)]
                drawn.append(judge(tile, uniforms, staged.ranked_by, self.config))
        return join(drawn)

"""A training step as the authors' release makes it, written from `docs/decisions.md` and the paper: slow on purpose.

Two forwards of the reference and two of the student on the same inputs, logits for prompt, clean and noisy copy, dense
attention, DDO through `log(1 - sigmoid(x))`, and a path loss per level over masked and visible positions.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from t3d.sdar.attention import TrainingTokens, training_mask
from t3d.training.loss import LossSettings
from t3d.training.states import State


def release_inputs(state: State, response_end: list[int]) -> dict[str, Tensor]:
    """Inputs of [prompt][clean response][noisy response], as one dense batch of one.

    Args:
        state: the sample's state.
        response_end: tokens of the last block, which the release's clean copy holds too.
    """
    clean = np.concatenate([state.clean_ids, np.array(response_end, dtype=np.int64)])
    positions = np.concatenate([np.arange(len(clean)), state.noisy_start + np.arange(len(state.targets))])
    tokens = TrainingTokens(
        block=torch.from_numpy((positions - state.origin) // state.block_size),
        noisy=torch.arange(len(positions)) >= len(clean),
        document=torch.zeros(len(positions), dtype=torch.long),
    )
    return {
        "input_ids": torch.from_numpy(np.concatenate([clean, state.inputs]))[None],
        "position_ids": torch.from_numpy(positions)[None],
        "attention_mask": training_mask(tokens, tokens)[None, None],
    }


def release_loss(
    student: nn.Module, reference: nn.Module, inputs: dict[str, Any], state: State, settings: LossSettings
) -> Tensor:
    """The loss of one sample; its gradient is that of `batch_losses` with `path_loss="release"`."""
    targets = torch.from_numpy(state.targets)
    masked = torch.from_numpy(state.masked & state.scored)

    def noisy_log_probs(model: nn.Module) -> Tensor:
        return model(**inputs).logits[0, -len(targets) :].log_softmax(-1)

    with torch.no_grad():
        reference_real = noisy_log_probs(reference).gather(-1, targets[:, None])[:, 0]
        reference_fake, fakes = noisy_log_probs(reference).max(-1)
    student_real = noisy_log_probs(student).gather(-1, targets[:, None])[:, 0]
    student_fake = noisy_log_probs(student).gather(-1, fakes[:, None])[:, 0]
    ratio_real = (student_real - reference_real)[masked].mean()
    ratio_fake = (student_fake - reference_fake)[masked].mean()
    loss_real = -torch.log(torch.sigmoid(settings.beta * ratio_real))
    loss_fake = -torch.log(1 - torch.sigmoid(settings.beta * ratio_fake))
    response, coarse = torch.from_numpy(state.response), torch.from_numpy(state.coarse_step)
    levels = [-student_real[response & (coarse <= level)].mean() for level in range(1, settings.num_coarse_steps + 1)]
    return loss_real + settings.alpha * loss_fake + settings.path * torch.stack(levels).mean()

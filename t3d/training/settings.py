"""From the configuration's keys to the settings of states and losses."""

from t3d.config import TrainConfig, TrainingConfig
from t3d.objectives.registry import OBJECTIVES
from t3d.sdar.checkpoint import chat_end_id
from t3d.sdar.opening import Checkpoint
from t3d.training.loss import LossSettings
from t3d.training.states import StateSettings


def state_settings(config: TrainConfig, checkpoint: Checkpoint) -> StateSettings:
    """How states are drawn: the objective's kind, in the configuration's variant."""
    training = config.training
    strategy = {"trace": training.mask_strategy, "random": "uniform", "all_mask": "all_mask"}[
        OBJECTIVES[training.objective].states
    ]
    tokenizer = checkpoint.tokenizer
    pad_id = tokenizer.pad_token_id
    return StateSettings(
        strategy=strategy,
        block_sizes=tuple(training.block_size_choices or [training.block_size]),
        mask_id=checkpoint.mask_id,
        pad_id=chat_end_id(tokenizer) if pad_id is None else pad_id,
        vocab_size=checkpoint.config.vocab_size,
        mask_ratios=tuple(training.mask_ratios),
        mask_ratio_exponent=training.mask_ratio_exponent,
        random_ratio=config.model.random_ratio,
        path_k_steps=training.path_k_steps,
        post_num=training.post_num,
        alignment=training.block_alignment,
    )


def needs_step_map(training: TrainingConfig, states: StateSettings) -> bool:
    """Whether states or terms follow the order in which the tokens of a sample were revealed."""
    return states.strategy.startswith("trace") or training.ranking_weight > 0 or training.soft_targets_weight > 0


def loss_settings(training: TrainingConfig) -> LossSettings:
    """Weights and variants of the loss: the objective's, where the configuration does not say otherwise."""
    preset = OBJECTIVES[training.objective]
    return LossSettings(
        cross_entropy=preset.cross_entropy,
        ddo=preset.ddo,
        path=training.path_weight,
        certainty=preset.weight("certainty", training.certainty_weight),
        alpha=training.alpha,
        beta=training.beta,
        ddo_level=training.ddo_level,
        fake_expectation=training.fake_expectation,
        reference_temp=training.reference_temp,
        path_loss=training.path_loss,
        num_coarse_steps=-(-training.block_size // training.path_k_steps),
        router=training.router_aux_weight,
        ranking=training.ranking_weight,
        soft=training.soft_targets_weight,
    )

import dataclasses
import math
import random

import pytest
import torch

from t3d.config import TrainingConfig
from t3d.objectives.registry import OBJECTIVES
from t3d.objectives.rows import reference_rows, row_values
from t3d.sdar import SDARForCausalLM
from t3d.training.forward import batch_losses
from t3d.training.loss import LossSettings
from t3d.training.packing import collate
from t3d.training.settings import loss_settings, needs_step_map
from t3d.training.states import State, StateSettings, TrainingSample, draw_state, sample_stream

from .oracle import Options, oracle_losses

MASK, PAD = 47, 46
CPU = torch.device("cpu")
PRESETS = {
    name: Options(**{term: weight for term, weight in vars(objective).items() if term != "states"})
    for name, objective in OBJECTIVES.items()
}
STATES = {"random": "uniform", "all_mask": "all_mask", "trace": "trace"}


def settings_of(options: Options, size: int) -> LossSettings:
    # The oracle has no experts: tests/training/test_mixture.py holds the loss of their routers.
    shared = {field.name for field in dataclasses.fields(LossSettings)} - {"num_coarse_steps", "router"}
    values = {name: getattr(options, name) for name in shared}
    return LossSettings(**values, num_coarse_steps=math.ceil(size / options.path_k_steps))


def make_samples(num: int = 4) -> list[TrainingSample]:
    chooser = random.Random(5)
    samples = []
    for index in range(num):
        length = chooser.randint(1, 13)
        steps, step = [], 0
        for _ in range(length):
            step += chooser.randint(0, 1) if steps else 1
            steps.append(step)
        for start in range(0, length, 4):
            shuffled = steps[start : start + 4]
            chooser.shuffle(shuffled)
            steps[start : start + 4] = shuffled
        prompt = [chooser.randrange(46) for _ in range(chooser.randint(1, 7))]
        response = [chooser.randrange(46) for _ in range(length)]
        samples.append(TrainingSample(prompt, response, steps, ended=index % 2 == 0))
    return samples


def draw_states(samples: list[TrainingSample], options: Options, size: int, strategy: str = "trace") -> list[State]:
    settings = StateSettings(
        strategy,
        (size,),
        MASK,
        options.pad_id,
        48,
        mask_ratios=(1.0, 0.75, 0.5),
        random_ratio=0.2,
        path_k_steps=options.path_k_steps,
        post_num=options.post_num,
        alignment=options.alignment,
    )
    return [draw_state(sample, settings, sample_stream(1, 0, index)) for index, sample in enumerate(samples)]


def losses(
    student: SDARForCausalLM, reference: SDARForCausalLM, states: list[State], settings: LossSettings
) -> dict[str, torch.Tensor]:
    batch = collate(states, PAD, CPU, visible_rows=settings.needs_visible_rows)
    return batch_losses(student, reference if settings.needs_reference else None, batch, settings)


@pytest.fixture(scope="module")
def student(build_tiny_model) -> SDARForCausalLM:
    return build_tiny_model(seed=0)


@pytest.fixture(scope="module")
def reference(build_tiny_model, student) -> SDARForCausalLM:
    """Near the student, as in training, but not equal to it."""
    model = build_tiny_model(seed=0)
    noise = build_tiny_model(seed=1)
    with torch.no_grad():
        for ours, theirs in zip(model.parameters(), noise.parameters(), strict=True):
            ours.add_(0.3 * theirs)
    return model


T3D = PRESETS["t3d"]
VARIANTS = {
    "alpha and beta": dataclasses.replace(T3D, alpha=1.3, beta=2.0),
    "block ratios": dataclasses.replace(T3D, ddo_level="block", beta=1.0),
    "token ratios": dataclasses.replace(T3D, ddo_level="token", beta=1.0),
    "exact fakes": dataclasses.replace(T3D, fake_expectation="exact", reference_temp=1.0, beta=1.0),
    "exact fakes at 2, per token": dataclasses.replace(
        T3D, fake_expectation="exact", reference_temp=2.0, beta=1.0, ddo_level="token"
    ),
    "exact fakes per block": dataclasses.replace(
        T3D, fake_expectation="exact", reference_temp=0.5, beta=1.0, ddo_level="block"
    ),
    "sampled fakes": dataclasses.replace(T3D, fake_expectation="sample", reference_temp=1.0, beta=1.0),
    "sampled fakes at 2, per block": dataclasses.replace(
        T3D, fake_expectation="sample", reference_temp=2.0, ddo_level="block"
    ),
    "one coarse step": dataclasses.replace(T3D, path_k_steps=8),
    "single coarse steps": dataclasses.replace(T3D, path_k_steps=1),
    "uneven coarse steps": dataclasses.replace(T3D, path_k_steps=3),
    "release path": dataclasses.replace(T3D, path_loss="release", path_k_steps=2),
    "release path, block ratios": dataclasses.replace(T3D, path_loss="release", path_k_steps=2, ddo_level="block"),
    "release path, no pads": dataclasses.replace(T3D, path_loss="release", post_num=0),
    "pads": dataclasses.replace(T3D, post_num=2),
    "response alignment": dataclasses.replace(T3D, alignment="response", post_num=2),
    "every term": dataclasses.replace(T3D, cross_entropy=0.7, certainty=1.5, path=0.3, ddo=0.9, ddo_level="token"),
    "naive td with path": dataclasses.replace(PRESETS["td"], path=0.2),
    "ranking": dataclasses.replace(PRESETS["td"], ranking=0.7, path_k_steps=1, post_num=2),
    "ranking in pairs": dataclasses.replace(T3D, ranking=0.7, path_k_steps=2),
    "soft targets": dataclasses.replace(PRESETS["td"], soft=0.6, path_k_steps=1),
    "soft targets, drawn fakes": dataclasses.replace(
        T3D, soft=0.6, ranking=0.3, path_k_steps=2, fake_expectation="sample", reference_temp=1.0
    ),
}


def assert_equal_to_oracle(student, reference, samples, states, options: Options, size: int) -> None:
    ours = losses(student, reference, states, settings_of(options, size))
    for index, (sample, state) in enumerate(zip(samples, states, strict=True)):
        expected = oracle_losses(student, reference, sample, state, options)
        assert ours.keys() == expected.keys()
        for name, value in expected.items():
            assert ours[name][index].item() == pytest.approx(value.item(), rel=2e-4, abs=2e-5), (name, index)


@torch.no_grad()
@pytest.mark.parametrize("size", [4, 8])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_equals_the_oracle(student, reference, name: str, size: int) -> None:
    options = dataclasses.replace(PRESETS[name], post_num=2, path_k_steps=2)
    samples = make_samples()
    states = draw_states(samples, options, size, STATES[OBJECTIVES[name].states])
    assert loss_settings(TrainingConfig(objective=name, block_size=size, path_k_steps=2)) == settings_of(options, size)
    assert_equal_to_oracle(student, reference, samples, states, options, size)


@torch.no_grad()
@pytest.mark.parametrize("size", [4, 8])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_option_equals_the_oracle(student, reference, variant: str, size: int) -> None:
    options, samples = VARIANTS[variant], make_samples()
    assert_equal_to_oracle(student, reference, samples, draw_states(samples, options, size), options, size)


@torch.no_grad()
@pytest.mark.parametrize("strategy", ["trace_earliest", "random"])
def test_other_states_equal_the_oracle(student, reference, strategy: str) -> None:
    samples = make_samples()
    assert_equal_to_oracle(student, reference, samples, draw_states(samples, T3D, 4, strategy), T3D, 4)


@pytest.mark.parametrize("variant", ["token ratios", "exact fakes", "every term", "soft targets, drawn fakes"])
def test_gradients_equal_the_oracles(student, reference, variant: str) -> None:
    options, samples = VARIANTS[variant], make_samples(2)
    states = draw_states(samples, options, 4)
    parameters = [parameter for _, parameter in student.named_parameters()]
    ours = losses(student, reference, states, settings_of(options, 4))["loss/total"].sum()
    theirs = sum(
        oracle_losses(student, reference, sample, state, options)["loss/total"]
        for sample, state in zip(samples, states, strict=True)
    )
    for mine, other in zip(torch.autograd.grad(ours, parameters), torch.autograd.grad(theirs, parameters), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_sum_over_samples_does_not_depend_on_batching(student, reference, name: str) -> None:
    options, samples = PRESETS[name], make_samples(6)
    states, settings = draw_states(samples, options, 4), settings_of(options, 4)
    whole = losses(student, reference, states, settings)
    for batch_size in (1, 2, 4):
        parts = [
            losses(student, reference, states[start : start + batch_size], settings)
            for start in range(0, 6, batch_size)
        ]
        for term, values in whole.items():
            torch.testing.assert_close(torch.cat([part[term] for part in parts]), values, rtol=1e-4, atol=1e-5)


def test_at_student_equal_to_reference_every_ratio_is_zero(student) -> None:
    states = draw_states(make_samples(), T3D, 4)
    for options in (T3D, VARIANTS["exact fakes"], VARIANTS["sampled fakes"]):
        terms = losses(student, student, states, settings_of(options, 4))
        assert terms["ratio/real"].tolist() == [0] * 4
        assert terms["ratio/fake"].tolist() == [0] * 4
        assert terms["loss/ddo"].tolist() == pytest.approx([1.5 * math.log(2)] * 4)


@torch.no_grad()
def test_a_sample_without_a_counted_position_has_no_loss(student, reference) -> None:
    # One token, revealed first; a quarter of its block is three pads that are all masked and none counts.
    sample = TrainingSample([1, 2, 3, 4], [9], [1], ended=False)
    settings = StateSettings("trace", (4,), MASK, PAD, 48, mask_ratios=(0.25,))
    state = draw_state(sample, settings, sample_stream(0, 0, 0))
    assert not (state.scored & state.masked).any()
    for options in (T3D, PRESETS["dparallel"], VARIANTS["block ratios"]):
        terms = losses(student, reference, [state], settings_of(options, 4))
        assert terms["loss/total"].isfinite().all()
        together = losses(
            student, reference, [state, *draw_states(make_samples(1), options, 4)], settings_of(options, 4)
        )
        assert together["loss/total"].isfinite().all()


# The fake term's sign (first order around student = reference: -alpha beta / 2 (p_tau - p) per token)


def fake_gradient(reference_logits: torch.Tensor, kind: str, temperature: float, num_draws: int = 1) -> torch.Tensor:
    """Gradient of the mean fake log-ratio with respect to the student's logits, at student = reference."""
    logits = reference_logits.clone().requires_grad_()
    uniforms, targets = (torch.arange(num_draws) + 0.5) / num_draws, torch.zeros(num_draws, dtype=torch.long)
    reference = reference_rows(reference_logits.expand(num_draws, -1), targets, uniforms, kind, temperature)
    values = row_values(logits.expand(num_draws, -1), targets, reference, temperature, certainty=False)
    values["fake_ratio"].mean().backward()
    return logits.grad


def entropy(logits: torch.Tensor) -> float:
    return torch.distributions.Categorical(logits=logits).entropy().item()


@pytest.mark.parametrize(
    ("kind", "temperature", "effect"),
    [
        ("argmax", 0.0, "flatter"),
        ("exact", 0.5, "flatter"),
        ("sample", 0.5, "flatter"),
        ("exact", 1.0, "unchanged"),
        ("sample", 1.0, "unchanged"),
        ("exact", 2.0, "sharper"),
        ("sample", 2.0, "sharper"),
    ],
)
def test_descent_on_the_fake_term_changes_the_entropy_as_its_temperature_says(
    kind: str, temperature: float, effect: str
) -> None:
    logits = torch.tensor([[2.0, 1.0, 0.5, -1.0]])
    gradient = fake_gradient(logits, kind, temperature, num_draws=2000)
    probabilities, tempered = logits.softmax(-1), torch.zeros(1, 4)
    if kind == "argmax":
        tempered[0, 0] = 1
    else:
        tempered = (logits / temperature).softmax(-1)
    torch.testing.assert_close(gradient, tempered - probabilities, atol=2e-3, rtol=0)
    # The fake term -log(1 - sigmoid(beta d_fake)) falls with d_fake: descent moves against its gradient.
    change = entropy(logits - 0.1 * gradient) - entropy(logits)
    if effect == "unchanged":
        assert abs(change) < 5e-4
    else:
        assert (change > 1e-3) if effect == "flatter" else (change < -1e-3)


def test_only_the_weighted_sum_of_asked_for_terms_is_computed(student, reference) -> None:
    states = draw_states(make_samples(), T3D, 4)
    assert losses(student, reference, states, settings_of(PRESETS["td"], 4)).keys() == {
        "loss/total",
        "loss/cross_entropy",
    }
    assert not settings_of(PRESETS["td"], 4).needs_reference
    assert settings_of(T3D, 4).needs_reference
    assert not settings_of(T3D, 4).needs_visible_rows
    assert settings_of(VARIANTS["release path"], 4).needs_visible_rows


@pytest.mark.parametrize(
    ("keys", "needed"),
    [
        ({"objective": "sft"}, False),
        ({"objective": "td"}, True),
        ({"objective": "sft", "ranking_weight": 1.0}, True),
        ({"objective": "sft", "soft_weight": 1.0}, True),
        ({"objective": "dparallel", "lambda_path": 0.5}, False),
    ],
)
def test_a_term_that_ranks_needs_recorded_steps(keys, needed: bool) -> None:
    training = TrainingConfig(**keys)
    strategy = {"trace": "trace", "random": "uniform", "all_mask": "all_mask"}[OBJECTIVES[training.objective].states]
    assert needs_step_map(training, StateSettings(strategy, (8,), 0, 1, 47)) == needed


def test_configured_weights_win_over_the_objectives() -> None:
    changed = loss_settings(
        TrainingConfig(objective="td", lambda_path=0.5, certainty_weight=2.0, block_size=9, path_k_steps=4)
    )
    assert (changed.cross_entropy, changed.path, changed.certainty, changed.num_coarse_steps) == (
        1,
        0.5,
        2,
        3,
    )
    off = loss_settings(TrainingConfig(objective="t3d", lambda_path=0.0))
    assert (off.ddo, off.path) == (1, 0)

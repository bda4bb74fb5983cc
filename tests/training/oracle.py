"""The whole T3D step, slowly: one forward per block over what the decoder would show, then loops and sums.

Written from the paper's equations. It takes from a drawn state only what chance decided (which positions are masked,
what stands there, uniforms, block size); everything else is worked out again from the recorded sample.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from t3d.sdar import SDARForCausalLM
from t3d.training.states import State, TrainingSample


@dataclass(frozen=True)
class Options:
    """What the loss is made of."""

    cross_entropy: float = 0.0
    ddo: float = 0.0
    path: float = 0.0
    certainty: float = 0.0
    alpha: float = 0.5
    beta: float = 0.1
    ddo_level: str = "sample"
    fake_expectation: str = "argmax"
    reference_temp: float = 0.0
    path_loss: str = "paper"
    path_k_steps: int = 4
    post_num: int = 0
    alignment: str = "absolute"
    pad_id: int = 46
    ranking: float = 0.0
    soft: float = 0.0


@dataclass
class Token:
    """One scored position of the noisy response."""

    target: int
    masked: bool
    pad: bool
    block: int
    pi: int
    uniform: float
    student: Tensor
    reference: Tensor | None
    real_ratio: Tensor = field(default_factory=lambda: torch.zeros(()))
    fake_ratio: Tensor = field(default_factory=lambda: torch.zeros(()))


def block_logits(model: SDARForCausalLM, tokens: list[int], size: int, origin: int) -> Tensor:
    """Logits of the last `size` tokens by a plain forward with a mask made by loops."""
    blocks = [math.floor((position - origin) / size) for position in range(len(tokens))]
    mask = torch.tensor([[key <= query for key in blocks] for query in blocks])
    return model(torch.tensor([tokens]), attention_mask=mask[None, None]).logits[0, -size:].double()


def read_tokens(
    student: SDARForCausalLM,
    reference: SDARForCausalLM | None,
    sample: TrainingSample,
    state: State,
    options: Options,
) -> list[Token]:
    """Every scored position with the log-probabilities [vocab] that both models give it."""
    size, prompt = state.block_size, len(sample.prompt_ids)
    origin = 0 if options.alignment == "absolute" else prompt
    full = [*sample.prompt_ids, *sample.response_ids]
    end = len(full)
    while (len(full) - origin) % size:
        full.append(options.pad_id)
    start = prompt - (prompt - origin) % size
    recorded = sample.step_map or [1] * (end - prompt)
    found = []
    for block, left in enumerate(range(start, len(full), size)):
        noisy = [int(token) for token in state.inputs[left - start : left - start + size]]
        context = full[:left] + noisy
        student_logits = block_logits(student, context, size, origin)
        with torch.no_grad():
            reference_logits = None if reference is None else block_logits(reference, context, size, origin)
        steps = {
            position: recorded[position - prompt] if position < end else math.inf
            for position in range(max(left, prompt), left + size)
        }
        for position, step in steps.items():
            if position >= end and not (sample.ended and position - end < options.post_num):
                continue
            rank = sum(1 for other in steps.values() if other < step)
            place = position - left
            found.append(
                Token(
                    target=full[position],
                    masked=bool(state.masked[position - start]),
                    pad=position >= end,
                    block=block,
                    pi=rank // options.path_k_steps + 1,
                    uniform=float(state.uniforms[position - start]),
                    student=student_logits[place].log_softmax(-1),
                    reference=None if reference_logits is None else reference_logits[place].log_softmax(-1),
                )
            )
    return found


def fake_ratio(token: Token, options: Options) -> Tensor:
    """log p_theta/p_ref of a token of the reference."""
    assert token.reference is not None
    ratios = token.student - token.reference
    if options.fake_expectation == "argmax":
        return ratios[int(token.reference.argmax())]
    weights = [math.exp(value / options.reference_temp) for value in token.reference.tolist()]
    total = sum(weights)
    if options.fake_expectation == "exact":
        return sum((weight / total * ratio for weight, ratio in zip(weights, ratios, strict=True)), torch.zeros(()))
    mass = 0.0
    for index, weight in enumerate(weights):
        mass += weight / total
        if mass > token.uniform:
            return ratios[index]
    return ratios[-1]


def divergence(token: Token) -> Tensor:
    """KL of the student from the reference, token by token of the vocabulary."""
    assert token.reference is not None
    pairs = zip(token.reference, token.student, strict=True)
    return sum((theirs.exp() * (theirs - ours) for theirs, ours in pairs), torch.zeros(()))


def mean(values: list[Tensor]) -> Tensor:
    """Mean; 0 of nothing."""
    return sum(values, torch.zeros((), dtype=torch.double)) / max(1, len(values))


def softplus(value: Tensor) -> Tensor:
    """-log sigmoid(-value)."""
    return torch.log1p(torch.exp(value))


def ddo_groups(tokens: list[Token], level: str) -> list[list[Token]]:
    """Units over which ratios are averaged, before the sigmoid."""
    if level == "sample":
        return [tokens] if tokens else []
    if level == "token":
        return [[token] for token in tokens]
    blocks = sorted({token.block for token in tokens})
    return [[token for token in tokens if token.block == block] for block in blocks]


def oracle_losses(
    student: SDARForCausalLM,
    reference: SDARForCausalLM | None,
    sample: TrainingSample,
    state: State,
    options: Options,
) -> dict[str, Tensor]:
    """The terms of one sample, and `loss/total`."""
    tokens = read_tokens(student, reference, sample, state, options)
    hidden = [token for token in tokens if token.masked]
    terms: dict[str, Tensor] = {}
    total = torch.zeros((), dtype=torch.double)
    if options.cross_entropy:
        terms["loss/cross_entropy"] = mean([-token.student[token.target] for token in hidden])
        total = total + options.cross_entropy * terms["loss/cross_entropy"]
    if options.ddo:
        for token in hidden:
            token.real_ratio = token.student[token.target] - token.reference[token.target]
            token.fake_ratio = fake_ratio(token, options)
        units = ddo_groups(hidden, options.ddo_level)
        real = [mean([token.real_ratio for token in unit]) for unit in units]
        fake = [mean([token.fake_ratio for token in unit]) for unit in units]
        terms["loss/ddo_real"] = mean([softplus(-options.beta * ratio) for ratio in real])
        terms["loss/ddo_fake"] = mean([softplus(options.beta * ratio) for ratio in fake])
        terms["loss/ddo"] = terms["loss/ddo_real"] + options.alpha * terms["loss/ddo_fake"]
        terms["ratio/real"] = mean([token.real_ratio for token in hidden])
        terms["ratio/fake"] = mean([token.fake_ratio for token in hidden])
        total = total + options.ddo * terms["loss/ddo"]
    if options.path:
        levels = math.ceil(state.block_size / options.path_k_steps)
        if options.path_loss == "paper":
            terms["loss/path"] = mean(
                [-(levels - token.pi + 1) / levels * token.student[token.target] for token in hidden]
            )
        else:
            terms["loss/path"] = mean(
                [
                    mean([-token.student[token.target] for token in tokens if token.pi <= level and not token.pad])
                    for level in range(1, levels + 1)
                ]
            )
        total = total + options.path * terms["loss/path"]
    if options.certainty:
        entropies = []
        for token in hidden:
            if int(token.student.argmax()) == token.target:
                sharpened = (2 * token.student).softmax(-1)
                entropies.append(-(sharpened * sharpened.log()).sum())
        terms["loss/certainty"] = mean(entropies)
        total = total + options.certainty * terms["loss/certainty"]
    ours = own_terms(hidden, state, options)
    total = total + options.ranking * ours.get("loss/ranking", 0) + options.soft * ours.get("loss/soft", 0)
    return {"loss/total": total, **terms, **ours}


def own_terms(hidden: list[Token], state: State, options: Options) -> dict[str, Tensor]:
    """The terms that are not the paper's."""
    terms: dict[str, Tensor] = {}
    if options.ranking:
        pairs = [
            (early.student.max(), late.student.max())
            for early in hidden
            for late in hidden
            if early.block == late.block and early.pi < late.pi
        ]
        terms["loss/ranking"] = mean([softplus(late - early) for early, late in pairs])
    if options.soft:
        levels = math.ceil(state.block_size / options.path_k_steps)
        terms["loss/soft"] = mean([(token.pi - 1) / levels * divergence(token) for token in hidden])
    return terms

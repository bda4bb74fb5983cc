"""Whether a rollout file's step maps are right: a sample of it, replayed, in words and as JSON."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from t3d.data.replay import Replay, replay
from t3d.devices import pick_device
from t3d.errors import DataError
from t3d.sdar.checkpoint import load_model
from t3d.sdar.opening import Checkpoint, open_checkpoint
from t3d.storage.files import write_json_atomic
from t3d.trajectory import Trajectory, read_rollouts, response_trajectory

ROUNDING = 0.01
"""Margin up to which another order of the sums, or another precision, explains a difference."""

SHOWN = 5
"""Responses with differences that are told one by one; the JSON holds all."""


def verify(path: Path, model: str, sample: int, rank_by: str, temperature: float) -> str:
    """Replays a sample of a rollout file, spread evenly over it, and returns what was found.

    All of it is written beside the file, as `<name>.verify.json`.

    Args:
        path: a rollout file with token ids.
        model: the folder or hub id of the model that decoded it.
        sample: most responses to replay.
        rank_by: what the strategy ranked by, see `replay`.
        temperature: see `replay`.

    Raises:
        UserError: an invalid record or model, or a token that the model does not have.
    """
    chosen = _sample(path, sample)
    checkpoint = open_checkpoint(model, chosen[0][3])
    network: Any = load_model(checkpoint.folder, config=checkpoint.config).to(pick_device("auto"))  # type: ignore[arg-type]
    found = []
    for record, response, trajectory, block_size in tqdm(chosen, "verify", unit="response", disable=None):
        _check_tokens(trajectory, checkpoint, f"{path}, record {record}, response {response}")
        replayed = replay(network, trajectory, checkpoint.mask_id, block_size, rank_by, temperature)
        found.append((record, response, trajectory, replayed))
    report = path.with_name(f"{path.name.removesuffix('.json')}.verify.json")
    settings = {"model": model, "rank_by": rank_by, "temperature": temperature}
    write_json_atomic(report, {**settings, "responses": [_as_json(*one) for one in found]})
    return "\n".join([*_lines(found, path), f"all of it: {report}", ""])


Chosen = tuple[int, int, Trajectory, int]
Found = tuple[int, int, Trajectory, Replay]


def _sample(path: Path, sample: int) -> list[Chosen]:
    """Evenly spread responses: (record, response, trajectory, block size)."""
    places = []
    for index, record in read_rollouts(path):
        places += [(index, number) for number in range(len(record["step_map"]))]
    count = min(sample, len(places))
    wanted = {places[place * len(places) // count] for place in range(count)}
    chosen = []
    for index, record in read_rollouts(path):
        for number in range(len(record["step_map"])):
            if (index, number) not in wanted:
                continue
            where = f"{path}, record {index}"
            if "response_ids" not in record or "block_size" not in record:
                raise DataError(where, "token ids and a block size, as an imported record has them", "none")
            trajectory = response_trajectory(record, number, record["prompt_ids"], f"{where}, response {number}")
            logprobs = record["logprob"][number] if "logprob" in record else None
            trajectory = Trajectory(**{**vars(trajectory), "logprobs": logprobs})
            chosen.append((index, number, trajectory, record["block_size"]))
    return chosen


def _check_tokens(trajectory: Trajectory, checkpoint: Checkpoint, where: str) -> None:
    highest, size = max(trajectory.prompt_ids + trajectory.response_ids), checkpoint.config.vocab_size
    if highest >= size:
        raise DataError(where, f"token ids below the model's vocab_size = {size}", highest)
    length, context = (
        len(trajectory.prompt_ids) + len(trajectory.response_ids),
        checkpoint.config.max_position_embeddings,
    )
    if length > context:
        raise DataError(where, f"a response within the model's {context} positions", f"{length} tokens")


def _logprob_errors(trajectory: Trajectory, replayed: Replay) -> list[float]:
    """|recorded - replayed| of each token's log-probability, in nats."""
    recorded = trajectory.logprobs
    return [] if recorded is None else [abs(recorded[place] - value) for place, value in replayed.logprobs.items()]


def _as_json(record: int, response: int, trajectory: Trajectory, replayed: Replay) -> dict[str, Any]:
    errors = _logprob_errors(trajectory, replayed)
    return {
        "record": record,
        "response": response,
        "tokens": replayed.tokens,
        "choices": replayed.choices,
        "left_out": replayed.left_out,
        "token_differences": [one._asdict() for one in replayed.token_differences],
        "step_differences": [one._asdict() for one in replayed.step_differences],
        "logprob_error_mean": sum(errors) / len(errors) if errors else None,
        "logprob_error_max": max(errors, default=None),
    }


def _lines(found: Sequence[Found], path: Path) -> list[str]:
    """The report for people."""
    replays = [one[3] for one in found]
    left_out = sum(one.left_out for one in replays)
    tokens, choices = sum(one.tokens for one in replays), sum(one.choices for one in replays)
    lines = [
        f"{path}: {len(replays)} response(s) replayed, {tokens} tokens, {choices} steps with a choice of positions"
        f" ({left_out} tokens of cut last blocks left out)",
        _count("tokens that are not the most probable one", [one.token_differences for one in replays], tokens),
        _count("steps that revealed other positions", [one.step_differences for one in replays], choices),
    ]
    errors = [error for _, _, trajectory, replayed in found for error in _logprob_errors(trajectory, replayed)]
    if errors:
        mean, most = sum(errors) / len(errors), max(errors)
        lines.append(f"recorded log-probabilities: off by {mean:.4f} nats on average, {most:.4f} at most")
    differing = [one for one in found if one[3].token_differences or one[3].step_differences]
    for record, response, _, replayed in differing[:SHOWN]:
        lines.append(f"record {record}, response {response}:")
        for token in replayed.token_differences[:1]:
            lines.append(
                f"  first token: position {token.position}, step {token.step}: {token.recorded} where {token.best} is"
                f" more probable by {token.margin:.4f} nats"
            )
        for step in replayed.step_differences[:1]:
            lines.append(
                f"  first step: step {step.step} revealed position {step.position} where {step.expected} ranks higher"
                f" by {step.margin:.4f}"
            )
    if len(differing) > SHOWN:
        lines.append(f"and {len(differing) - SHOWN} more response(s) with differences")
    return lines


def _count(what: str, differences: Sequence[Sequence[Any]], total: int) -> str:
    """How many, and how large their margins are."""
    margins = sorted(one.margin for some in differences for one in some)
    line = f"{what}: {len(margins)} of {total}"
    if margins:
        large = sum(margin > ROUNDING for margin in margins)
        line += f", {large} of them by more than {ROUNDING} nats"
        line += f" (margin: median {margins[len(margins) // 2]:.4f}, largest {margins[-1]:.4f})"
    return line

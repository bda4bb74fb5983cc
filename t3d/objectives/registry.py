"""Objectives by name: which states a sample is shown in, and which terms its loss sums.

A new objective is one line here; `training.lambda_path` and `training.certainty_weight` add or drop terms of any.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Objective:
    """A named preset.

    Attributes:
        states: "trace" (`training.mask_strategy` on the recorded steps), "random" (masking ratio uniform, Eq. 3)
            or "all_mask" (nothing of the response revealed).
        cross_entropy: weight of -log p_theta(x0 | x_t).
        ddo: weight of traj-DDO (Eq. 7).
        path: weight of the path loss (Eq. 8) unless `training.lambda_path` says otherwise.
        certainty: weight of the certainty term unless `training.certainty_weight` says otherwise.
        soft: weight of soft targets for what is revealed late unless `training.soft_weight` says otherwise.
    """

    states: str
    cross_entropy: float = 0.0
    ddo: float = 0.0
    path: float = 0.0
    certainty: float = 0.0
    soft: float = 0.0

    def weight(self, term: str, given: float | None) -> float:
        """A term's weight: the objective's own, unless a configuration has given one."""
        own: float = getattr(self, term)
        return own if given is None else given


OBJECTIVES: dict[str, Objective] = {
    "sft": Objective(states="random", cross_entropy=1),
    "redi": Objective(states="random", cross_entropy=1),
    "dparallel": Objective(states="all_mask", cross_entropy=1, certainty=2),
    "td": Objective(states="trace", cross_entropy=1),
    "ddo": Objective(states="trace", ddo=1),
    "t3d": Objective(states="trace", ddo=1, path=0.2),
    "near_far": Objective(states="trace", path=1, soft=1),
}
"""The paper's, and `near_far`, which is ours: hard targets near in the trajectory, soft ones far."""

WEIGHT_KEYS = {
    "training.lambda_path": "path",
    "training.certainty_weight": "certainty",
    "training.soft_weight": "soft",
}
"""The keys that say an objective's weights otherwise, and whose null is the objective's own."""

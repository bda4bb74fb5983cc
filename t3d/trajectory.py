"""The record that every stage shares: a decoded response and the step that revealed each token."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Trajectory:
    """One decoded response with its denoising order.

    Attributes:
        prompt_ids: the prompt, as token ids.
        response_ids: the generated token ids, ending with the stop token if there was one.
        step_map: for each response token the 1-based denoising step, counted over the whole response, that
            revealed it; same length as `response_ids`.
        finish_reason: "stop" (a stop token was generated) or "length" (the token limit was reached).
        num_forwards: model forwards this sequence took part in, prefill included.
        num_steps: denoising steps spent on this sequence.
    """

    prompt_ids: list[int]
    response_ids: list[int]
    step_map: list[int]
    finish_reason: str
    num_forwards: int
    num_steps: int

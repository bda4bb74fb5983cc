"""Lossless speculative decoding of the built-in teacher on TinyMath: accepted tokens per forward, cost, and equality.

Every response is compared with the ordinary decoder's, token for token and step for step; one that differs ends the
run.  Times are of one thread's processor, the two decoders in turn.

`python bench/lossless.py [--student CHECKPOINT]` writes bench_results/lossless.json and prints the table of
docs/speed.md.
"""

import t3d.entry  # noqa: F401 - how threads wait, before torch is loaded

import argparse
import gc
import itertools
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from t3d.decoding import DecodingConfig, decode
from t3d.decoding.limits import prefill_forwards
from t3d.decoding.speculative import Draft, Drafted, iter_speculative
from t3d.prompts import build_prompt
from t3d.sdar import SDARForCausalLM
from t3d.sdar.checkpoint import default_stop_ids, load_decoder, load_tokenizer
from t3d.toy.problems import generate
from t3d.trajectory import Trajectory

ROOT = Path(__file__).parents[1]
TEACHER = ROOT / "t3d/toy/teacher"
RESULTS = ROOT / "bench_results"
DECODINGS = ((4, 4, 0.0), (8, 8, 0.0), (4, 4, 0.7), (4, 4, 0.1))
"""Block size, steps and temperature."""
ALONE = 8
"""Prompts that are timed one at a time."""
TOGETHER = 64
REPEATS = 2


def ratio(tokens: Sequence[float], forwards: Sequence[float]) -> tuple[float, float]:
    """Tokens per forward over all responses, and its standard error (linearised, responses being independent)."""
    got, spent = np.asarray(tokens, dtype=float), np.asarray(forwards, dtype=float)
    found = got.sum() / spent.sum()
    error = np.sqrt(((got - found * spent) ** 2).sum() / (len(got) * (len(got) - 1))) / spent.mean()
    return float(found), float(error)


def check_equal(ordinary: Sequence[Trajectory], drafted: Sequence[Drafted]) -> None:
    """Raises RuntimeError where a response is not the ordinary decoder's."""
    pairs = zip(ordinary, drafted, strict=True)
    different = [index for index, (a, b) in enumerate(pairs) if a != replace(b.trajectory, num_forwards=a.num_forwards)]
    if different:
        raise RuntimeError(f"responses {different} differ from the ordinary decoder's")


def seconds(works: Sequence[Callable[[], Any]]) -> list[float]:
    """The shortest processor time of each, in turn."""
    times = [float("inf")] * len(works)
    for index, work in list(enumerate(works)) * REPEATS:
        gc.collect()
        started = time.process_time()
        work()
        times[index] = min(times[index], time.process_time() - started)
    return times


def speculative(
    model: SDARForCausalLM, prompts: Sequence[list[int]], config: DecodingConfig, draft: Draft, max_active: int
) -> list[Drafted]:
    """The responses in the order of the prompts."""
    found = dict(iter_speculative(model, prompts, config, draft, max_active))
    return [found[index] for index in range(len(prompts))]


def measure(
    model: SDARForCausalLM, prompts: list[list[int]], config: DecodingConfig, drafts: Sequence[Draft]
) -> list[dict[str, Any]]:
    """One line per draft, after one of the ordinary decoder."""
    ordinary = decode(model, prompts, config, TOGETHER)
    prefills = np.array([prefill_forwards(len(prompt), config.block_size) for prompt in prompts])
    tokens = [len(trajectory.response_ids) for trajectory in ordinary]
    settings = {
        "block_size": config.block_size,
        "denoising_steps": config.denoising_steps,
        "temperature": config.temperature,
        "num_prompts": len(prompts),
    }
    usual, usual_error = ratio(tokens, [trajectory.num_forwards for trajectory in ordinary] - prefills)
    lines = [settings | {"draft": "none", "tokens_per_forward": usual, "standard_error": usual_error}]
    for draft in drafts:
        drafted = speculative(model, prompts, config, draft, TOGETHER)
        check_equal(ordinary, drafted)
        own = np.array([found.own_forwards for found in drafted]) - prefills
        theirs = np.array([found.draft_forwards for found in drafted])
        both = own + np.maximum(theirs - prefills, 0)
        per_own, per_all = ratio(tokens, own), ratio(tokens, both)
        faster = {}
        for name, some, active in (("alone", prompts[:ALONE], 1), ("together", prompts[:TOGETHER], TOGETHER)):
            before, after = seconds(
                [
                    partial(decode, model, some, config, active),
                    partial(speculative, model, some, config, draft, active),
                ]
            )
            faster[name] = before / after
        lines.append(
            settings
            | {
                "draft": draft.source,
                "equal": len(drafted),
                "tokens_per_forward": per_own[0],
                "standard_error": per_own[1],
                "tokens_per_any_forward": per_all[0],
                "standard_error_any": per_all[1],
                "positions_per_forward": float(sum(found.positions for found in drafted) / own.sum()),
                "times_faster_on_a_cpu": faster,
            }
        )
        sys.stderr.write(f"{lines[-1]}\n")
    return lines


def table(lines: Sequence[dict[str, Any]]) -> str:
    """The results as Markdown."""
    rows = [
        "| block/steps | temperature | draft | tokens per forward of the teacher | per forward of either | "
        "positions per forward | x as fast on a CPU, 1 sequence | 64 sequences | equal responses |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        cells = [f"{line['block_size']}/{line['denoising_steps']}", f"{line['temperature']:g}", line["draft"]]
        cells.append(f"{line['tokens_per_forward']:.3f} ± {line['standard_error']:.3f}")
        if line["draft"] == "none":
            cells += [cells[-1], "", "1", "1", ""]
        else:
            faster = line["times_faster_on_a_cpu"]
            cells.append(f"{line['tokens_per_any_forward']:.3f} ± {line['standard_error_any']:.3f}")
            cells.append(f"{line['positions_per_forward']:.1f}")
            cells += [f"{faster['alone']:.2f}", f"{faster['together']:.2f}", f"{line['equal']}/{line['num_prompts']}"]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    """Measures, prints the table and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", type=Path, help="a student of the teacher, which drafts, too")
    parser.add_argument("--prompts", type=int, default=100, help="TinyMath test problems")
    parser.add_argument("--out", type=Path, default=RESULTS / "lossless.json", help="where the results go")
    given = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer, cpu = load_tokenizer(TEACHER), torch.device("cpu")
    model, drafts = load_decoder(TEACHER, "auto", cpu), [Draft()]
    if given.student is not None:
        student = load_decoder(given.student, "auto", cpu)
        drafts += [Draft(source, student) for source in ("student", "both")]
    problems = itertools.islice(generate("test"), given.prompts)
    prompts = [build_prompt(tokenizer, problem, "math")[1] for problem in problems]
    stops, lines = default_stop_ids(TEACHER, tokenizer), []
    for size, steps, temperature in DECODINGS:
        config = DecodingConfig(
            model.config.mask_token_id, size, steps, 128, temperature, stop_ids=stops, record=("logprob",)
        )
        lines += measure(model, prompts, config, drafts)
    given.out.parent.mkdir(exist_ok=True)
    given.out.write_text(json.dumps(lines, indent=1))
    sys.stdout.write(table(lines) + "\n")


if __name__ == "__main__":
    main()

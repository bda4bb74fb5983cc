"""Decoding speed beside two peers: the same weights, the same prompts, the same greedy responses, in one run.

The peers run the network as transformers loads it, which is how their users have them, and once more with the layers
that `load_decoder` gives our engine, which shows what the decoding itself is worth.

`make bench` writes bench_results/decode.json and decode_length.json and prints docs/speed.md's table; with `--quick` a
small sample of it, with `--only` one model's lines, nothing written.
"""

import t3d.entry  # noqa: F401 - how threads wait, before torch is loaded

import argparse
import copy
import ctypes
import gc
import itertools
import json
import random
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers import decode_alone, decode_together

from t3d.decoding import DecodingConfig, decode
from t3d.decoding.lanes import side_by_side
from t3d.decoding.limits import prefill_forwards
from t3d.prompts import build_prompt
from t3d.sdar import SDARConfig, SDARForCausalLM
from t3d.sdar.checkpoint import default_stop_ids, load_decoder, load_model, load_tokenizer
from t3d.sdar.decoding_layers import pack_layers
from t3d.toy.problems import generate
from t3d.trajectory import Trajectory

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench_results"
DECODINGS = ((4, 4), (4, 2), (4, 1), (8, 2))
NUM_PROMPTS = (1, 16, 64)
ALONE = 2
"""Prompts on which the batch-1 peer is timed where there are more: its speed does not depend on their number."""
REPEATS = 3
PAIRS_S = 4
"""Seconds of pairs that `share` times per repeat: short runs are noisier."""
LENGTHS = (128, 256, 512, 1024, 2048)


@dataclass
class Subject:
    """A model, prompts of different lengths, and what ends its responses.

    Attributes:
        name: in the table.
        model: with the layers of `load_decoder`.
        loaded: the same weights in PyTorch's own layers, as transformers loads them.
        prompts: token ids.
        stop_ids: tokens that end a response.
        max_new_tokens: limit of a response.
    """

    name: str
    model: SDARForCausalLM
    loaded: SDARForCausalLM
    prompts: list[list[int]]
    stop_ids: tuple[int, ...]
    max_new_tokens: int

    def config(self, block_size: int, steps: int, max_new_tokens: int | None = None) -> DecodingConfig:
        """Greedy decoding; without the stop tokens where the length is given."""
        stops = self.stop_ids if max_new_tokens is None else ()
        limit = max_new_tokens or self.max_new_tokens
        return DecodingConfig(self.model.config.mask_token_id, block_size, steps, limit, stop_ids=stops)


def random_subject() -> Subject:
    """58M random parameters shaped like SDAR; every 80th token is a stop token, so that responses end anywhere."""
    torch.manual_seed(0)
    config = SDARConfig(
        vocab_size=32_000,
        hidden_size=512,
        intermediate_size=1_664,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=4_096,
        initializer_range=0.15,
        tie_word_embeddings=False,
        block_size=4,
        mask_token_id=31_999,
        bos_token_id=None,
        eos_token_id=None,
    )
    chooser = random.Random(0)
    lengths = [chooser.randint(16, 128) for _ in range(max(NUM_PROMPTS))]
    prompts = [[chooser.randrange(config.mask_token_id) for _ in range(length)] for length in lengths]
    loaded = SDARForCausalLM(config).eval()
    model = copy.deepcopy(loaded)
    pack_layers(model)  # as the scripts do when they load one
    return Subject("random-58M", model, loaded, prompts, tuple(range(0, 31_999, 80)), 128)


def toy_subject() -> Subject:
    """The built-in teacher on TinyMath problems."""
    folder = ROOT / "t3d/toy/teacher"
    tokenizer = load_tokenizer(folder)
    problems = itertools.islice(generate("test"), max(NUM_PROMPTS))
    prompts = [build_prompt(tokenizer, problem, "math")[1] for problem in problems]
    return Subject(
        "toy-teacher",
        load_decoder(folder, "auto", torch.device("cpu")),
        load_model(folder),
        prompts,
        default_stop_ids(folder, tokenizer),
        128,
    )


SUBJECTS = {"random": random_subject, "toy": toy_subject}


@dataclass
class Forwards:
    """Model calls of an engine, by thread, and how many threads each used."""

    calls: defaultdict[int, list[Callable[[], Any]]] = field(default_factory=lambda: defaultdict(list))
    num_threads: int = 1


@contextmanager
def recorded(model: SDARForCausalLM) -> Iterator[Forwards]:
    """Collects the model calls of each thread: as bare forwards, with the output head on the same rows."""
    made = Forwards()
    forward = model.forward

    def recording(ids: torch.Tensor, *, head: Callable[..., Any], **layout: Any) -> Any:
        made.calls[threading.get_ident()].append(lambda: forward(ids, **layout))
        made.num_threads = torch.get_num_threads()
        return forward(ids, head=head, **layout)

    model.forward = recording
    try:
        yield made
    finally:
        model.forward = forward


def fastest(works: Mapping[str, Callable[[], Any]], repeats: int) -> tuple[dict[str, float], dict[str, Any]]:
    """The shortest wall time of each, and its result.

    They run in turn, so that a slow spell of the machine meets all; what its other users add is nobody's.
    """
    times, results = dict.fromkeys(works, float("inf")), {}
    for name, work in list(works.items()) * repeats:
        gc.collect()
        started = time.perf_counter()
        results[name] = work()
        times[name] = min(times[name], time.perf_counter() - started)
    return times, results


def replay(made: Forwards) -> None:
    """The forwards alone, back to back, side by side where the engine made them so."""

    def lane(forwards: Sequence[Callable[[], Any]]) -> Iterator[list[None]]:
        for forward in forwards:
            with torch.inference_mode():
                forward()
            yield []

    for _ in side_by_side([partial(lane, forwards) for forwards in made.calls.values()], made.num_threads):
        pass


def share(part: Callable[[], Any], whole: Callable[[], Any], repeats: int) -> float:
    """The part's share of the whole's time: the median of pairs of runs, at least twice `repeats`.

    The rest is a few percent, less than the noise between two minima: the runs of a pair meet the same spell.
    """
    shares: list[float] = []
    started = time.perf_counter()
    while len(shares) < 2 * repeats or time.perf_counter() - started < repeats * PAIRS_S:
        times, _ = fastest({"part": part, "whole": whole}, 1)
        shares.append(times["part"] / times["whole"])
    return float(np.median(shares))


def memory_mb(work: Callable[[], Any]) -> tuple[float, float]:
    """How far resident memory rises during `work`, and how far it is then, in MB (Linux with glibc)."""

    def kilobytes(field: str) -> int:
        return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0])

    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what earlier work left would be used again, and not be seen
    Path("/proc/self/clear_refs").write_text("5")
    before = kilobytes("VmRSS")
    work()
    most = kilobytes("VmHWM")
    return (most - before) / 1024, most / 1024


def check_equal(ours: Sequence[Trajectory], peers: Sequence[list[int]], peer: str) -> None:
    """Raises RuntimeError where a response differs."""
    different = [index for index, (a, b) in enumerate(zip(ours, peers, strict=False)) if a.response_ids != b]
    if different:
        raise RuntimeError(f"responses {different} differ from those of {peer}")


def measure(subject: Subject, num_prompts: int, block_size: int, steps: int, repeats: int) -> dict[str, Any]:
    """One line of decode.json."""
    prompts, config = subject.prompts[:num_prompts], subject.config(block_size, steps)
    engine = partial(decode, subject.model, prompts, config, max_active=num_prompts)
    extra_mb, peak_mb = memory_mb(engine)
    batched_mb, _ = memory_mb(partial(decode_together, subject.loaded, prompts, config))
    with recorded(subject.model) as forwards:
        engine()
    peers = {
        "plain": partial(decode_alone, subject.loaded, prompts[:ALONE], config),
        "batched": partial(decode_together, subject.loaded, prompts, config),
        "plain, our layers": partial(decode_alone, subject.model, prompts[:ALONE], config),
        "batched, our layers": partial(decode_together, subject.model, prompts, config),
    }
    times, results = fastest({"engine": engine, **peers}, repeats)
    ours = results["engine"]
    for peer in peers:
        check_equal(ours, results[peer].responses, peer)
    tokens = [len(trajectory.response_ids) for trajectory in ours]
    speeds = {peer: sum(tokens[: len(results[peer].responses)]) / times[peer] for peer in peers}
    speeds["engine"] = sum(tokens) / times["engine"]
    steps_per_block = [
        (trajectory.num_forwards - prefill_forwards(len(trajectory.prompt_ids), block_size))
        / len({(len(trajectory.prompt_ids) + place) // block_size for place in range(len(trajectory.response_ids))})
        for trajectory in ours
    ]
    plain = results["plain"]
    return {
        "model": subject.name,
        "num_prompts": num_prompts,
        "block_size": block_size,
        "denoising_steps": steps,
        "tokens_per_second": speeds,
        "times_faster": {peer: speeds["engine"] / speeds[peer] for peer in peers},
        "forwards_per_block": {"plain": plain.forwards / plain.blocks, "engine": float(np.mean(steps_per_block))},
        "efficiency": share(partial(replay, forwards), engine, repeats),
        "extra_mb": {"engine": extra_mb, "batched": batched_mb},
        "peak_mb": peak_mb,
        "response_tokens": {"min": min(tokens), "mean": float(np.mean(tokens)), "max": max(tokens)},
        "plain_timed_on": min(num_prompts, ALONE),
    }


def measure_length(subject: Subject, lengths: Sequence[int], repeats: int) -> dict[str, Any]:
    """Time against response length, with its straight line."""
    prompts = subject.prompts[:1]
    works = {str(length): partial(decode, subject.model, prompts, subject.config(4, 1, length)) for length in lengths}
    times = list(fastest(works, repeats)[0].values())
    slope, intercept = np.polyfit(lengths, times, 1)
    fitted = slope * np.array(lengths) + intercept
    residuals = np.array(times) - fitted
    return {
        "model": subject.name,
        "num_prompts": 1,
        "block_size": 4,
        "denoising_steps": 1,
        "response_tokens": list(lengths),
        "seconds": times,
        "fit": {"seconds_per_token": float(slope), "intercept_s": float(intercept)},
        "r_squared": 1 - float((residuals**2).sum() / ((np.array(times) - np.mean(times)) ** 2).sum()),
        "largest_deviation": float(np.abs(residuals / fitted).max()),
    }


def table(results: Sequence[dict[str, Any]]) -> str:
    """The results as Markdown."""
    lines = [
        "| model | prompts | block/steps | x plain | x batched | x plain, our layers | x batched, our layers | "
        "forwards/block, plain -> ours | efficiency | extra MB, batched -> ours |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in results:
        forwards, memory = row["forwards_per_block"], row["extra_mb"]
        cells = [
            row["model"],
            str(row["num_prompts"]),
            f"{row['block_size']}/{row['denoising_steps']}",
            *(f"{ratio:.3g}" for ratio in row["times_faster"].values()),
            f"{forwards['plain']:.2f} -> {forwards['engine']:.2f}",
            f"{row['efficiency']:.0%}",
            f"{memory['batched']:.0f} -> {memory['engine']:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measures, prints the table and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few prompts and settings, nothing written")
    parser.add_argument("--only", choices=SUBJECTS, help="this model's lines, nothing written")
    given = parser.parse_args()
    quick, names = given.quick, list(SUBJECTS) if given.only is None else [given.only]
    counts, decodings, lengths = (1, 16), ((4, 4), (4, 1)), (64, 128, 256)
    if not quick:
        counts, decodings, lengths = NUM_PROMPTS, DECODINGS, LENGTHS
    repeats = 1 if quick else REPEATS
    results = []
    for name in names:
        subject = SUBJECTS[name]()
        decode(subject.model, subject.prompts[:2], subject.config(4, 1, 8))  # the first calls allocate
        for num_prompts, (block_size, steps) in itertools.product(counts, decodings):
            results.append(measure(subject, num_prompts, block_size, steps, repeats))
            sys.stderr.write(table(results[-1:]).splitlines()[-1] + "\n")
    sys.stdout.write(table(results) + "\n")
    if given.only is not None:
        return
    by_length = measure_length(random_subject(), lengths, repeats)
    sys.stderr.write(f"{by_length}\n")
    if not quick:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "decode.json").write_text(json.dumps(results, indent=1))
        (RESULTS / "decode_length.json").write_text(json.dumps(by_length, indent=1))


if __name__ == "__main__":
    main()

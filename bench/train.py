"""How fast and how large a training step is, beside a step as the authors' release makes it.

`python bench/train.py [--quick]` prints a table and writes bench_results/train.json.  Every figure comes from a fresh
process, which computes in single precision on the CPU with the model of `build_model` (57.9M parameters).

- step: one sample (prompt 128, response 384), forward and backward, the same weights and the same state; the release's
  step is `release_step.py`, ours is what `train/self_ddo_sdar_full.py` runs (`training.path_loss=release`, so that the
  gradients must be equal).  Memory is the growth of the resident set from before the first step to its peak.
- mix: samples per second over prompts and responses of the lengths of `draw_lengths`, ours packed to 2048 tokens and
  with the default `path_loss=paper`.  What the release does to a sample shorter than max_prompt_len + max_gen_length is
  not written down in this project's sources; that it trains `post_num` of a sample's pads at micro-batch 1 says that it
  pads.  So it is timed both ways: padded to 512 + 1024 (`release_like_samples_per_s`) and not padded at all
  (`release_like_unpadded_samples_per_s`).
- efficiency: time of the least that a step must compute (reference forward, student forward and backward on the same
  packed tokens, output head on the rows of the loss, a trivial loss) as a share of our whole step's, drawing of states
  included.
"""

import t3d.entry  # noqa: F401 - how threads wait, before torch is loaded

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from release_step import release_inputs, release_loss  # noqa: E402

from t3d.config import TrainingConfig  # noqa: E402
from t3d.sdar import SDARConfig, SDARForCausalLM  # noqa: E402
from t3d.training.forward import batch_losses  # noqa: E402
from t3d.training.loss import LossSettings  # noqa: E402
from t3d.training.packing import Batch, collate  # noqa: E402
from t3d.training.schedule import token_packs  # noqa: E402
from t3d.training.settings import loss_settings  # noqa: E402
from t3d.training.states import State, StateSettings, TrainingSample, draw_state, sample_stream  # noqa: E402

VOCAB, MASK, PAD, BLOCK = 32_000, 31_999, 31_998, 8
TOKENS_PER_BATCH = 2048
MAX_PROMPT, MAX_RESPONSE = 512, 1024
STATES = StateSettings(
    "trace", (BLOCK,), MASK, PAD, VOCAB, (1.0, 0.75, 0.5, 0.25), 8.0, random_ratio=0.1, path_k_steps=4, post_num=2
)
RELEASE_LOSS = loss_settings(TrainingConfig(path_loss="release"))


def build_model(seed: int) -> SDARForCausalLM:
    """A random model of 57.9M parameters."""
    torch.manual_seed(seed)
    config = SDARConfig(
        vocab_size=VOCAB,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        tie_word_embeddings=False,
        block_size=BLOCK,
        mask_token_id=MASK,
    )
    return SDARForCausalLM(config)


def build_pair() -> tuple[SDARForCausalLM, SDARForCausalLM]:
    """Student and reference, which differ."""
    return build_model(0).train(), build_model(1).eval().requires_grad_(False)


def draw_sample(prompt: int, response: int, seed: int) -> TrainingSample:
    """A sample of random tokens, decoded one token per step in a random order within each block."""
    chooser = np.random.default_rng(seed)
    ids = chooser.integers(VOCAB - 2, size=prompt + response).tolist()
    order = [block + place for block in range(0, response, BLOCK) for place in chooser.permutation(BLOCK)]
    steps = [int(place) + 1 for place in order if place < response]
    return TrainingSample(ids[:prompt], ids[prompt:], steps, ended=True)


def draw_lengths(num: int) -> list[tuple[int, int]]:
    """Prompt and response lengths, half as GSM8K and half as MATH.

    Log-normal with sigma 0.5.  Mean response 250 and 722 tokens: what the paper's model writes on them
    (Table 3); mean prompt 100 and 120, with the chat template.  Cut at 512 and 1024.
    """
    chooser = np.random.default_rng(0)
    lengths = []
    for index in range(num):
        means = (100, 250) if index % 2 else (120, 722)
        prompt, response = (chooser.lognormal(np.log(mean) - 0.5**2 / 2, 0.5) for mean in means)
        lengths.append((min(MAX_PROMPT, max(20, round(prompt))), min(MAX_RESPONSE, max(8, round(response)))))
    return lengths


def state_of(sample: TrainingSample, index: int = 0) -> State:
    """The sample's state in its first visit."""
    return draw_state(sample, STATES, sample_stream(0, 0, index))


def release_step(sample: TrainingSample, student: SDARForCausalLM, reference: SDARForCausalLM) -> None:
    """The release's step on one sample."""
    state = state_of(sample)
    inputs = release_inputs(state, state.targets[-BLOCK:].tolist())
    release_loss(student, reference, inputs, state, RELEASE_LOSS).backward()


def our_step(
    samples: list[TrainingSample], student: SDARForCausalLM, reference: SDARForCausalLM, settings: LossSettings
) -> Batch:
    """Our step on samples that are packed together."""
    states = [state_of(sample, index) for index, sample in enumerate(samples)]
    batch = collate(states, PAD, torch.device("cpu"), visible_rows=settings.needs_visible_rows)
    batch_losses(student, reference, batch, settings)["loss/total"].sum().backward()
    return batch


def least_step(batch: Batch, student: SDARForCausalLM, reference: SDARForCausalLM) -> None:
    """The least that a step must compute."""
    inputs = {"attention_mask": batch.plan, "position_ids": batch.position_ids, "logit_rows": batch.logit_rows}
    with torch.no_grad():
        reference(batch.input_ids, **inputs)
    student(batch.input_ids, **inputs).logits.sum().backward()


def timed(step: Callable[[], object], student: SDARForCausalLM) -> float:
    """Seconds of a step, gradients cleared afterwards."""
    started = time.perf_counter()
    step()
    seconds = time.perf_counter() - started
    student.zero_grad()
    return seconds


def memory_mb(name: str) -> float:
    """VmRSS or VmHWM of this process."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) / 1024


def measure_step(kind: str, repeats: int, gradients: Path) -> dict[str, float]:
    """Seconds (median) and peak memory growth of one step; its gradients go to a file."""
    student, reference = build_pair()
    sample = draw_sample(128, 384, 0)
    step = {
        "release": lambda: release_step(sample, student, reference),
        "ours": lambda: our_step([sample], student, reference, RELEASE_LOSS),
    }[kind]
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of building the models
    before = memory_mb("VmRSS")
    step()
    peak = memory_mb("VmHWM")
    torch.save({name: parameter.grad for name, parameter in student.named_parameters()}, gradients)
    student.zero_grad()
    return {"s": float(np.median([timed(step, student) for _ in range(repeats)])), "mb": peak - before}


def measure_padded() -> dict[str, float]:
    """Seconds of the release's step on a sample padded to the limits, whatever its length."""
    student, reference = build_pair()
    sample = draw_sample(MAX_PROMPT, MAX_RESPONSE, 0)
    release_step(draw_sample(64, 64, 0), student, reference)
    return {"s": timed(lambda: release_step(sample, student, reference), student)}


def measure_unpadded(num: int) -> dict[str, float]:
    """Seconds per sample of the release's step on samples of their own lengths."""
    student, reference = build_pair()
    samples = [draw_sample(*lengths, index) for index, lengths in enumerate(draw_lengths(num))]
    release_step(draw_sample(64, 64, 0), student, reference)
    return {"s": sum(timed(lambda: release_step(sample, student, reference), student) for sample in samples) / num}  # noqa: B023


def measure_mix(num: int) -> dict[str, float]:
    """Our seconds per sample, the least possible, and the share of computed tokens that are real."""
    student, reference = build_pair()
    samples = [draw_sample(*lengths, index) for index, lengths in enumerate(draw_lengths(num))]
    lengths = [len(sample.prompt_ids) + 2 * len(sample.response_ids) + 2 * BLOCK for sample in samples]
    packs = token_packs([(0, index) for index in range(num)], lengths, TOKENS_PER_BATCH, 0, 1)
    settings = replace(RELEASE_LOSS, path_loss="paper")
    our_step([samples[index] for _, index in packs[0]], student, reference, settings)
    ours = least = real = computed = 0.0
    for pack in packs:
        chosen = [samples[index] for _, index in pack]
        batches = []
        ours += timed(lambda: batches.append(our_step(chosen, student, reference, settings)), student)  # noqa: B023
        least += timed(lambda: least_step(batches[0], student, reference), student)  # noqa: B023
        real, computed = real + batches[0].num_tokens, computed + batches[0].input_ids.numel()
    return {"s": ours / num, "least_s": least / num, "real_token_share": real / computed, "packs": len(packs)}


def fresh(*arguments: str) -> dict[str, float]:
    """Measures in a new process."""
    environment = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}
    # The C library keeps freed memory, as in training runs (`t3d.devices`): returning it costs page faults.  One arena:
    # with several, how much is used again depends on which thread was waiting for which.
    environment |= {"MALLOC_MMAP_THRESHOLD_": "2000000000", "MALLOC_TRIM_THRESHOLD_": "4000000000"}
    environment |= {"MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, __file__, "--measure", *arguments]
    ended = subprocess.run(command, env=environment | os.environ, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(ended.stdout)


def report(quick: bool) -> dict[str, object]:
    """Measures everything."""
    repeats, num = ("1", "2") if quick else ("3", "8")
    with tempfile.TemporaryDirectory() as folder:
        files = [f"{folder}/{kind}.pt" for kind in ("release", "ours")]
        theirs, ours = (
            fresh("step", kind, repeats, file) for kind, file in zip(("release", "ours"), files, strict=True)
        )
        expected, found = (torch.load(file) for file in files)
    difference = max(float((expected[name] - found[name]).abs().max()) for name in expected)
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    assert difference < 1e-4 * largest, f"gradients differ by {difference}, the largest is {largest}"
    mix = fresh("mix", num)
    return {
        "step": {
            "release_like_s": theirs["s"],
            "ours_s": ours["s"],
            "release_like_mb": theirs["mb"],
            "ours_mb": ours["mb"],
            "max_grad_difference": difference,
            "max_grad": largest,
        },
        "mix": {
            "release_like_samples_per_s": 1 / fresh("padded")["s"],
            "release_like_unpadded_samples_per_s": 1 / fresh("unpadded", num)["s"],
            "ours_samples_per_s": 1 / mix["s"],
            "real_token_share": mix["real_token_share"],
        },
        "efficiency": mix["least_s"] / mix["s"],
    }


def table(result: dict) -> str:
    """The result in Markdown."""
    step, mix = result["step"], result["mix"]
    speed = mix["ours_samples_per_s"]
    rows = [
        ("", "release-like", "ours", "ratio"),
        ("---", "---", "---", "---"),
        (
            "step, s",
            f"{step['release_like_s']:.2f}",
            f"{step['ours_s']:.2f}",
            f"{step['release_like_s'] / step['ours_s']:.2f}x faster",
        ),
        (
            "step, peak MB",
            f"{step['release_like_mb']:.0f}",
            f"{step['ours_mb']:.0f}",
            f"{step['ours_mb'] / step['release_like_mb']:.0%}",
        ),
    ]
    for name, note in (("release_like", "padded to 512 + 1024"), ("release_like_unpadded", "not padded")):
        theirs = mix[f"{name}_samples_per_s"]
        rows.append(
            (f"length mix, samples/s (release {note})", f"{theirs:.3f}", f"{speed:.3f}", f"{speed / theirs:.1f}x")
        )
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    difference = (
        f"Largest gradient difference {step['max_grad_difference']:.1e} (largest gradient {step['max_grad']:.1e})."
    )
    shares = f"Real tokens {mix['real_token_share']:.1%}; efficiency {result['efficiency']:.1%}."
    return "\n".join([*lines, "", difference, shares])


MEASURES: dict[str, Callable[..., dict[str, float]]] = {
    "step": lambda kind, repeats, file: measure_step(kind, int(repeats), Path(file)),
    "padded": measure_padded,
    "unpadded": lambda num: measure_unpadded(int(num)),
    "mix": lambda num: measure_mix(int(num)),
}


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer samples and repeats: for trying out")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        name, *rest = arguments.measure
        sys.stdout.write(json.dumps(MEASURES[name](*rest)))
        return
    result = report(arguments.quick)
    target = ROOT / "bench_results" / "train.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(result, indent=2) + "\n")
    sys.stdout.write(f"{table(result)}\n\n{target}\n")


if __name__ == "__main__":
    main()

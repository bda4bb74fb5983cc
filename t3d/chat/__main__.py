"""Talks with a model: its answers appear block by block as they are denoised, each with its tokens per forward.

Reads a terminal, or else takes each line of its input as a turn.  /new begins a new conversation, Ctrl-C ends an
answer, Ctrl-D the chat.  Answers go to the output, all else to the error output.
"""

from t3d.entry import run_entry

import io
import sys

from t3d.api import DTYPES, Settings, load
from t3d.arguments import ArgumentParser
from t3d.chat.session import Session
from t3d.chat.terminal import typed
from t3d.errors import ConfigError
from t3d.remasking import CONFIDENCES, STRATEGIES
from t3d.storage.paths import TOY_TEACHER

EXAMPLE = "t3d chat --model JetLM/SDAR-4B-Chat --block-size 4 --steps 1"
THRESHOLDS = {"low_confidence_dynamic": "dynamic_threshold", "entropy_bounded": "eb_threshold"}
"""Strategy -> the setting that --threshold is for it."""


def main(arguments: list[str]) -> None:
    """Talks as the command line asks.

    Raises:
        UserError: wrong arguments, no such model or device, or, without a terminal, a turn that cannot be answered.
    """
    parser = ArgumentParser(__doc__ or "", EXAMPLE)
    add = parser.add_argument
    add("--model", default=TOY_TEACHER, help="model folder or hub id; the built-in toy teacher")
    add("--block-size", type=int, default=4, help="positions per block")
    add("--steps", type=int, help="most denoising steps per block (default: the block size, one token per step)")
    add("--max-tokens", type=int, default=256, help="most new tokens per answer")
    add("--temperature", type=float, default=0.0, help="softmax temperature; 0: the most probable token")
    add("--strategy", default="low_confidence_static", choices=STRATEGIES, help="which tokens a step reveals")
    add("--threshold", type=float, help="low_confidence_dynamic: confidence; entropy_bounded: sum of entropies (nats)")
    add("--confidence", default="scaled", choices=CONFIDENCES, help="raw: the model's own, at temperature 1")
    add("--seed", type=int, default=0, help="seed of every random stream")
    add("--system", help="a system's turn in front")
    add("--wording", help="how turns are put: math, option, or a text with {problem} (toy teacher: math)")
    add("--device", default="auto", help="auto (cuda, else mps, else cpu) or a torch device string")
    add("--dtype", default="auto", choices=DTYPES, help="auto: as stored")
    options = vars(parser.parse_args(arguments))
    model = load(options["model"], device=options["device"], dtype=options["dtype"], wording=options.get("wording"))
    decoding = settings(options)
    model.decoding_config(**decoding)  # says what is wrong with them before anybody types
    _take_any_text()
    session = Session(model, decoding, options.get("system"), interactive=sys.stdin.isatty())
    session.run(typed() if session.interactive else sys.stdin)


def settings(options: dict[str, object]) -> Settings:
    """The decoder's settings among the options.

    Raises:
        ConfigError: --threshold for a strategy that has none.
    """
    names = {
        "block_size": "block_size",
        "steps": "denoising_steps",
        "max_tokens": "max_new_tokens",
        "temperature": "temperature",
        "strategy": "remasking_strategy",
        "confidence": "confidence",
        "seed": "seed",
    }
    if "threshold" in options:
        if options["strategy"] not in THRESHOLDS:
            raise ConfigError("--threshold", f"--strategy {' or '.join(THRESHOLDS)} beside it", options["strategy"])
        names["threshold"] = THRESHOLDS[str(options["strategy"])]
    return {names[name]: value for name, value in options.items() if name in names}  # type: ignore[return-value]


def _take_any_text() -> None:
    """Bytes that are no text are told as a mistake of the turn, and letters that an old terminal lacks are spelled."""
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


if __name__ == "__main__":
    run_entry(main)

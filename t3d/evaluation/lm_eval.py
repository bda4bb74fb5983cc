r"""The model `t3d` of lm-evaluation-harness (extra `eval`).

    python -m t3d.evaluation.lm_eval --model t3d --apply_chat_template --tasks gsm8k \
        --model_args pretrained=JetLM/SDAR-4B-Chat,block_size=4,denoising_steps=1

is the harness's own command line, `lm_eval`, with this model registered.  Its releases up to 0.4.13 find no model
outside their own source tree; later ones read the entry point in pyproject.toml, and there plain `lm_eval` does too.
"""

from t3d.entry import run_entry

import dataclasses
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import logging as hub_logging
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, simple_parse_args_string
from omegaconf import MISSING
from tqdm import tqdm

from t3d.config import load_config
from t3d.config.keys import MAX_SEED, key
from t3d.data.download import HTTP_ERROR
from t3d.decoding import DecodingConfig, iter_decode
from t3d.decoding.config import warn_of_threshold
from t3d.decoding.likelihood import iter_likelihoods
from t3d.devices import pick_device
from t3d.errors import ConfigError, DataError
from t3d.prompts import render
from t3d.remasking import CONFIDENCES, STRATEGIES
from t3d.sdar.checkpoint import default_stop_ids, load_decoder
from t3d.sdar.opening import open_checkpoint
from t3d.trajectory import encoded, response_text

UNREACHABLE = (ConnectionError, LocalEntryNotFoundError, HfHubHTTPError, HTTP_ERROR)
"""What the harness's libraries raise without a network."""
HARNESS_DEVICE = "cuda:0"
"""The harness's default of --device, said on machines without CUDA too."""
SAMPLING = ("temperature", "top_p", "top_k")
REQUEST_SETTINGS = ("until", "max_gen_toks", "do_sample", *SAMPLING)


@dataclasses.dataclass
class ModelArguments:
    """What --model_args takes."""

    pretrained: str = key(MISSING, "model folder or hub id")
    block_size: int = key(4, "positions per block", low=1)
    denoising_steps: int | None = key(None, "most denoising steps per block (null: block_size)", low=1)
    max_new_tokens: int = key(256, "most new tokens, exactly, where a task does not say max_gen_toks", low=1)
    temperature: float | None = key(None, "softmax temperature (null: the task's, else 0: argmax)", low=0)
    top_p: float | None = key(None, "mass of the most probable tokens kept (null: the task's, else 1)", low=0, high=1)
    top_k: int | None = key(None, "most probable tokens kept, 0 for all (null: the task's, else 0)", low=0)
    remasking_strategy: str = key("low_confidence_static", "which tokens a step reveals", one_of=STRATEGIES)
    dynamic_threshold: float = key(0.9, "confidence for low_confidence_dynamic", low=0, high=1)
    eb_threshold: float = key(0.35, "entropy sum, in nats, for entropy_bounded", low=0)
    confidence: str = key("scaled", "confidence of remasking", one_of=CONFIDENCES)
    seed: int = key(0, "seed of every random stream", low=0, high=MAX_SEED)
    max_active: int = key(32, "sequences in one forward; does not change results", low=1)
    device: str = key("auto", "auto (cuda, else mps, else cpu) or a torch device string")
    dtype: str = key("auto", "auto: as stored", one_of=("auto", "float32", "bfloat16", "float16"))

    def sampling(self) -> dict[str, Any]:
        """The sampling settings that hold whatever a task says."""
        said = {name: value for name, value in dataclasses.asdict(self).items() if name in SAMPLING}
        return {name: value for name, value in said.items() if value is not None}


@register_model("t3d")
class T3DLM(TemplateLM):
    """A block-diffusion model behind the harness's interface.

    `generate_until` is `t3d.decoding`: the same texts as eval.py for the same prompts, settings and seed.
    Likelihoods are those of the sequential decoder at temperature 1, whatever `denoising_steps` says: see
    `t3d.decoding.likelihood`.

    A prompt comes from the harness as text.  Special tokens spelled out in a problem therefore count as markup
    here, where eval.py, which still knows what is data, encodes them as ordinary characters.
    """

    def __init__(self, **model_args: Any) -> None:
        """Loads the model.

        Args:
            **model_args: see `ModelArguments`.

        Raises:
            UserError: an unknown argument, one of the wrong type or outside its range, an unusable checkpoint.
        """
        super().__init__()
        given = [f"{name}={json.dumps(value)}" for name, value in model_args.items()]
        self.settings = load_config(ModelArguments, given, "", "")
        checkpoint = open_checkpoint(self.settings.pretrained, self.settings.block_size)
        self.tokenizer = checkpoint.tokenizer
        self._device = pick_device(self.settings.device)
        self.model = load_decoder(checkpoint.folder, self.settings.dtype, self._device, config=checkpoint.config)
        self._decoding = DecodingConfig(
            mask_id=checkpoint.mask_id,
            block_size=self.settings.block_size,
            denoising_steps=self.settings.denoising_steps or self.settings.block_size,
            max_new_tokens=self.settings.max_new_tokens,
            remasking_strategy=self.settings.remasking_strategy,
            dynamic_threshold=self.settings.dynamic_threshold,
            eb_threshold=self.settings.eb_threshold,
            stop_ids=default_stop_ids(checkpoint.folder, self.tokenizer),
            confidence=self.settings.confidence,
            seed=self.settings.seed,
            **self.settings.sampling(),
        )

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict | None = None) -> "T3DLM":
        """See `create_from_arg_obj`."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict | None = None) -> "T3DLM":
        """Builds the model from --model_args and, where these are silent, --device and --batch_size.

        The harness's defaults (cuda:0, 1) cannot be told from a choice: 1 is left out, and so is cuda:0 where
        there is no CUDA.  `device=` and `max_active=` among the model's arguments say exactly what to use.
        """
        options = {name: value for name, value in (additional_config or {}).items() if value is not None}
        batch_size, device = str(options.pop("batch_size", 1)), options.pop("device", HARNESS_DEVICE)
        if batch_size.isdecimal() and int(batch_size) > 1:
            options["max_active"] = int(batch_size)
        if device != HARNESS_DEVICE or torch.cuda.is_available():
            options["device"] = device
        return cls(**{**options, **arg_dict})

    @property
    def eot_token_id(self) -> int:
        """The token that stands for an empty context."""
        return self.tokenizer.eos_token_id

    @property
    def tokenizer_name(self) -> str:
        """Part of the key under which the harness caches its requests."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_kwargs: Any) -> list[int]:
        """Token ids of `string`, special tokens recognised and none added."""
        del add_special_tokens
        return encoded(string, self.tokenizer)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt's text, by the checkpoint's own template.

        Raises:
            CheckpointError: the checkpoint has none, or one that refuses these turns.
        """
        return render(self.tokenizer, chat_history, opened=add_generation_prompt)

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Decodes every request and cuts its text at the first of its stop strings.

        A request's random stream is numbered as eval.py numbers it, by document and repetition, so that no
        response depends on what else is evaluated.

        Raises:
            UserError: a setting that this decoder does not have, or a prompt too long for the model.
        """
        groups: dict[DecodingConfig, list[int]] = defaultdict(list)
        repetitions: Counter[int] = Counter()
        streams = []
        for number, request in enumerate(requests):
            groups[self._request_decoding(request.args[1])].append(number)
            streams.append(request.doc_id * request.repeats + repetitions[id(request)])
            repetitions[id(request)] += 1
        texts = [""] * len(requests)
        with tqdm(total=len(requests), desc="generate", unit="response", disable=disable_tqdm) as progress:
            for decoding, numbers in groups.items():
                warn_of_threshold(decoding)
                prompts = [self.tok_encode(requests[number].args[0]) for number in numbers]
                mine = [streams[number] for number in numbers]
                for place, done in iter_decode(self.model, prompts, decoding, self.settings.max_active, mine):
                    number = numbers[place]
                    if done.error is not None:
                        raise DataError(f"request {number}", "a prompt that can be decoded", done.error)
                    text = response_text(done, self.tokenizer)
                    texts[number] = _cut(text, _stop_strings(requests[number].args[1]))
                    self.cache_hook.add_partial("generate_until", requests[number].args, texts[number])
                    progress.update()
        return texts

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Scores (what to cache it under, context, continuation)."""
        pairs = [(context, continuation) for _, context, continuation in requests]
        scores = [(0.0, True)] * len(pairs)
        found = iter_likelihoods(
            self.model, pairs, self._decoding.mask_id, self._decoding.block_size, self.settings.max_active
        )
        for number, score in tqdm(found, total=len(pairs), desc="score", unit="request", disable=disable_tqdm):
            scores[number] = tuple(score)
            if requests[number][0] is not None:
                self.cache_hook.add_partial("loglikelihood", requests[number][0], tuple(score))
        return scores

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of each whole text after an end-of-text token; longer ones than the context in windows."""
        size = self._decoding.block_size
        longest = self.model.config.max_position_embeddings // size * size
        windows, owners = [], []
        for number, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            # The harness counts a window without its last token, which a causal model need not read.
            for window in get_rolling_token_windows(tokens, self.prefix_token_id, longest - 1, context_len=1):
                windows.append((None, *make_disjoint_window(window)))
                owners.append(number)
        totals = [0.0] * len(requests)
        for owner, (log_prob, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            totals[owner] += log_prob
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _request_decoding(self, gen_kwargs: Mapping[str, Any]) -> DecodingConfig:
        """The decoder's settings for a request: the model's arguments, then what the task says."""
        task = dict(normalize_gen_kwargs(dict(gen_kwargs), self.settings.max_new_tokens))
        unknown = sorted(task.keys() - set(REQUEST_SETTINGS))
        if unknown:
            raise ConfigError("generation_kwargs", f"only {', '.join(REQUEST_SETTINGS)}", ", ".join(unknown))
        sampling = {name: task[name] for name in SAMPLING if name in task} | self.settings.sampling()
        stop_ids = set(self._decoding.stop_ids).union(*map(self._single_token, _stop_strings(gen_kwargs)))
        return dataclasses.replace(
            self._decoding, max_new_tokens=task["max_gen_toks"], stop_ids=tuple(sorted(stop_ids)), **sampling
        )

    def _single_token(self, string: str) -> set[int]:
        """The token that is `string`, if there is one: decoding need not go on after it."""
        ids = self.tok_encode(string)
        return set(ids) if len(ids) == 1 and self.tokenizer.decode(ids) == string else set()


def _stop_strings(gen_kwargs: Mapping[str, Any]) -> list[str]:
    until = gen_kwargs.get("until") or []
    return [string for string in ([until] if isinstance(until, str) else until) if string]


def _cut(text: str, stop_strings: Sequence[str]) -> str:
    """`text` up to the first occurrence of any stop string."""
    places = [text.find(string) for string in stop_strings]
    return text[: min((place for place in places if place >= 0), default=len(text))]


def main(arguments: list[str]) -> None:
    """Runs the harness's command line, which reads sys.argv itself.

    Raises:
        DataError: the data of a task is neither on this machine nor within reach.
    """
    del arguments
    hub_logging.set_verbosity_error()  # else two lines for each of its attempts
    try:
        cli_evaluate()
    except UNREACHABLE as error:
        expected = "the tasks' data, from the Hugging Face hub or the copy of an earlier download (HF_HOME)"
        raise DataError("lm-eval", expected, error) from error


if __name__ == "__main__":
    run_entry(main)

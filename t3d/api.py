"""Models in Python: `load` one, let it `generate` answers, or `stream` one block by block.

The decoder, its kernels and its memory are those of rollouts: the same prompt, settings and seed give the same tokens.
"""

from t3d.entry import reproducible_products

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, cast, overload

from transformers import PreTrainedTokenizerBase
from typing_extensions import Unpack

from t3d.decoding import DecodingConfig, iter_decode
from t3d.decoding.config import check_types, warn_of_threshold
from t3d.decoding.limits import prompt_error
from t3d.devices import pick_device, room
from t3d.errors import CheckpointError, ConfigError, DataError
from t3d.prompts import Message, chat_prompt, reworded
from t3d.sdar import SDARForCausalLM
from t3d.sdar.checkpoint import default_stop_ids, load_decoder
from t3d.sdar.opening import Checkpoint, open_checkpoint
from t3d.storage.paths import TOY_TEACHER
from t3d.trajectory import UNDECODED, UNFINISHED, Trajectory, decoded, response_text

DTYPES = ("auto", "float32", "bfloat16", "float16")


Conversation = str | list[Message]
"""What a model answers: a user's words, or the turns of a conversation, each {"role": ..., "content": ...}."""


class Settings(TypedDict, total=False):
    """How an answer is decoded: the fields of `t3d.decoding.DecodingConfig`, which tells their ranges and units.

    Left out, `denoising_steps` is the block size (one token per step), `stop_ids` are the model's own, and the others
    are `DecodingConfig`'s: blocks of 4, at most 256 new tokens, temperature 0.
    """

    block_size: int
    denoising_steps: int
    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    remasking_strategy: str
    dynamic_threshold: float
    eb_threshold: float
    stop_ids: tuple[int, ...]
    seed: int
    confidence: str
    record: tuple[str, ...]
    end_early: bool


@dataclass(frozen=True)
class Answer:
    """What a model answered.

    Attributes:
        text: as people read it: without the stop token, other special tokens spelled out.
        trajectory: the prompt and the answer as token ids, with everything that is known of the decoding.
    """

    text: str
    trajectory: Trajectory

    @property
    def tokens(self) -> list[int]:
        """The answer's token ids, the stop token included."""
        return self.trajectory.response_ids

    @property
    def step_map(self) -> list[int]:
        """For each token the denoising step that revealed it, from 1, counted over the answer."""
        return self.trajectory.step_map

    @property
    def num_forwards(self) -> int:
        """Model forwards that the answer took, those of the prompt included."""
        return self.trajectory.num_forwards

    @property
    def finish_reason(self) -> str:
        """How the answer ended: "stop" (a stop token was generated) or "length" (`max_new_tokens` was reached)."""
        return self.trajectory.finish_reason

    @property
    def tokens_per_forward(self) -> float:
        """Tokens of the answer per model forward."""
        return len(self.tokens) / self.num_forwards


@dataclass(frozen=True)
class Block:
    """A finished block of an answer.

    Attributes:
        text: what it adds to the answer's text; a character that several blocks share comes with the last of them.
        tokens: its token ids; the prompt's tail may share the first block, and the answer's end cuts the last.
        step_map: for each token the denoising step that revealed it, from 1, counted over the answer.
        answer: the whole answer, with its last block; None before.
    """

    text: str
    tokens: list[int]
    step_map: list[int]
    answer: Answer | None = None


class Model:
    """A checkpoint that answers; made by `load`.

    Attributes:
        network: the network, which `t3d.decoding.decode` takes, too.
        tokenizer: its tokenizer.
        checkpoint: where it lies, and its configuration.
        wording: how users' words are put to it, see `load`.
    """

    def __init__(self, network: SDARForCausalLM, checkpoint: Checkpoint, wording: str | None) -> None:
        """Takes a loaded network and what was read of its checkpoint."""
        self.network, self.checkpoint, self.wording = network, checkpoint, wording
        self.tokenizer: PreTrainedTokenizerBase = checkpoint.tokenizer

    @overload
    def generate(self, prompt: Conversation, max_active: int = 64, **settings: Unpack[Settings]) -> Answer: ...
    @overload
    def generate(
        self, prompt: list[str] | list[list[Message]], max_active: int = 64, **settings: Unpack[Settings]
    ) -> list[Answer]: ...
    def generate(self, prompt: Any, max_active: int = 64, **settings: Unpack[Settings]) -> Answer | list[Answer]:
        """Answers a prompt, or a list of them together.

        Args:
            prompt: a text (a user's turn), a conversation (a list of turns, the last one the user's), or a list of
                texts or conversations.
            max_active: most prompts decoded together, as memory allows; changes no answer.
            **settings: see `Settings`.  Each prompt of a list has its own random stream.

        Returns:
            The answer, or the answers in the order of the prompts.

        Raises:
            ConfigError: settings out of range, or no memory for even one prompt.
            DataError: a prompt that is none, or that does not fit the model with `max_new_tokens` behind it.
            CheckpointError: a network whose logits are not finite, or a tokenizer without a usable chat template.
        """
        if not isinstance(max_active, int) or max_active < 1:
            raise ConfigError("max_active", "a whole number of at least 1", repr(max_active))
        if not isinstance(prompt, str | Sequence):
            raise DataError("prompt", "a text, a list of turns, or a list of either", type(prompt).__name__)
        alone = isinstance(prompt, str) or (bool(prompt) and isinstance(prompt[0], Mapping))
        config = self.decoding_config(**settings)
        asked: Any = [prompt] if alone else prompt
        prompts = self._encode(asked, config)
        found = dict(iter_decode(self.network, prompts, config, max_active))
        answers = [self._answer(found[index], config, index) for index in range(len(prompts))]
        return answers[0] if alone else answers

    def stream(self, prompt: Conversation, **settings: Unpack[Settings]) -> Iterator[Block]:
        """Yields an answer block by block, each as soon as it is finished; the texts make the answer's.

        Args:
            prompt: a text (a user's turn), or a conversation (a list of turns, the last one the user's).
            **settings: see `Settings`.

        Raises:
            UserError: see `generate`.
        """
        config = self.decoding_config(**settings)
        return self._blocks(self._encode([prompt], config), config)

    def _blocks(self, prompts: list[list[int]], config: DecodingConfig) -> Iterator[Block]:
        text, known = _GrowingText(self.tokenizer), 0
        # A stream that is left early stops the engine, too.
        with closing(cast(Any, iter_decode(self.network, prompts, config, max_active=1, by_block=True))) as news:
            for _, trajectory in news:
                unfinished = trajectory.finish_reason == UNFINISHED
                answer = None if unfinished else self._answer(trajectory, config, 0)
                added = text.grow(trajectory.response_ids) if answer is None else text.end(answer.text)
                yield Block(added, trajectory.response_ids[known:], trajectory.step_map[known:], answer)
                known = len(trajectory.response_ids)

    def decoding_config(self, **settings: Unpack[Settings]) -> DecodingConfig:
        """The decoder's settings, completed with the model's mask and stop tokens.

        Raises:
            ConfigError: an unknown setting, or a value of another type or out of range.
        """
        check_types(settings)
        stop_ids = default_stop_ids(self.checkpoint.folder, self.tokenizer)
        block_size = settings.get("block_size", DecodingConfig.block_size)
        defaults: dict[str, Any] = {"denoising_steps": block_size, "stop_ids": stop_ids}
        config = DecodingConfig(mask_id=self.checkpoint.mask_id, **(defaults | dict(settings)))
        warn_of_threshold(config)
        return config

    def _encode(self, prompts: Sequence[Conversation], config: DecodingConfig) -> list[list[int]]:
        encoded = []
        for index, prompt in enumerate(prompts):
            where = f"prompt {index}"
            turns: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            if not isinstance(turns, Sequence):
                raise DataError(where, "a text or a list of turns", type(prompt).__name__)
            ids = chat_prompt(self.tokenizer, [self._reword(turn) for turn in turns], where)[1]
            error = prompt_error(self.network.config, ids, config)
            if error is not None:
                raise DataError(where, "a prompt that fits the model, with max_new_tokens behind it", error)
            encoded.append(ids)
        return encoded

    def _reword(self, turn: Message) -> Message:
        by_user = isinstance(turn, Mapping) and turn.get("role") == "user" and isinstance(turn.get("content"), str)
        return {**turn, "content": reworded(turn["content"], self.wording)} if by_user else turn

    def _answer(self, trajectory: Trajectory, config: DecodingConfig, index: int) -> Answer:
        if trajectory.error is not None:
            where = f"{self.checkpoint.folder}, answering prompt {index}"
            raise CheckpointError(where, "a network that computes finite logits", trajectory.error)
        return Answer(response_text(trajectory, self.tokenizer), trajectory)


class _GrowingText:
    """What to add to a text, as its tokens come in, so that nothing that was shown changes."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Starts empty."""
        self.tokenizer = tokenizer
        self.shown = ""

    def grow(self, ids: list[int]) -> str:
        """What the tokens so far (all of them, `ids`) add; a character that is still incomplete waits."""
        return self.end(decoded(ids, self.tokenizer).rstrip(UNDECODED))

    def end(self, text: str) -> str:
        """What is missing of the whole `text`."""
        added = text.removeprefix(self.shown) if text.startswith(self.shown) else ""
        self.shown += added
        return added


def load(
    model: str | Path = TOY_TEACHER,
    *,
    device: str = "auto",
    dtype: str = "auto",
    compile: bool = False,
    wording: str | None = None,
) -> Model:
    """Loads a model to decode with.

    As every command does, it asks MKL for reproducible products (the environment's MKL_CBWR, where it is not set).

    Args:
        model: a folder or a hub id such as "JetLM/SDAR-4B-Chat"; left out, the built-in toy teacher.
        device: "auto" (cuda, else mps, else cpu) or torch's name of a device.
        dtype: "auto" (as stored), "float32", "bfloat16" or "float16".
        compile: hand the layers to torch.compile: meant for GPUs; starts later and rounds otherwise.
        wording: how a user's words are put to the model: "math", "option", "function" or "stdio", as benchmarks of
            that kind ask, or a text with {problem} once.  None: as they are; but the built-in teacher, which knows no
            other questions, is asked "math".

    Raises:
        CheckpointError: no such model, or one that cannot be read.
        ConfigError: no such device, dtype or wording, or no memory for the weights.
    """
    model = str(model) if isinstance(model, Path) else model
    for name, value in (("model", model), ("device", device), ("wording", "math" if wording is None else wording)):
        if not isinstance(value, str) or not value:
            raise ConfigError(name, "a text", repr(value))
    if dtype not in DTYPES:
        raise ConfigError("dtype", f"one of {', '.join(DTYPES)}", repr(dtype))
    if wording is None and model == TOY_TEACHER:
        wording = "math"
    reworded("", wording)
    reproducible_products()
    target = pick_device(device, where="device")
    checkpoint = open_checkpoint(model, DecodingConfig.block_size)
    with room("device", "memory for the model's weights"):
        network = load_decoder(checkpoint.folder, dtype, target, compile, checkpoint.config)
    return Model(network, checkpoint, wording)

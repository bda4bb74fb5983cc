"""Configuration of an SDAR model: Qwen3's, plus the block size and the mask token."""

from typing import Any

from transformers import Qwen3Config


class SDARConfig(Qwen3Config):
    """`config.json` with `model_type: "sdar"`.

    Attributes:
        block_size: positions per block, counted from position 0.
        mask_token_id: id of the mask token, the input at positions not yet revealed.
    """

    model_type = "sdar"

    def __init__(self, block_size: int = 4, mask_token_id: int = 151669, **kwargs: Any) -> None:
        """Takes Qwen3's fields as keywords.

        Raises:
            ValueError: `block_size` below 1, or `mask_token_id` outside the vocabulary.
        """
        self.block_size = block_size
        self.mask_token_id = mask_token_id
        super().__init__(**kwargs)
        if block_size < 1:
            raise ValueError(f"block_size: expected at least 1, found {block_size}")
        if not 0 <= mask_token_id < self.vocab_size:
            raise ValueError(f"mask_token_id: expected an id below vocab_size {self.vocab_size}, found {mask_token_id}")

    @property
    def rotary_base(self) -> float:
        """The RoPE base, wherever the installed transformers keeps it."""
        parameters = self.__dict__.get("rope_parameters") or {}
        return parameters.get("rope_theta") or self.__dict__["rope_theta"]

    def to_dict(self) -> dict[str, Any]:
        """The fields of `config.json`.

        transformers 5 keeps the RoPE base in `rope_parameters`, where 4.x does not look: without a top-level
        `rope_theta` an older reader would silently use 10,000.
        """
        return {**super().to_dict(), "rope_theta": self.rotary_base}

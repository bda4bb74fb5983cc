"""Configuration of an SDAR model: Qwen3's, plus the block size and the mask token."""

from typing import Any

from transformers import Qwen3Config


class SDARConfig(Qwen3Config):
    """`config.json` with `model_type: "sdar"`.

    Keys of the authors' training code are ignored, and so is the attention that they trained with: ours is used, unless
    `from_pretrained` is called with another `attn_implementation`.

    Attributes:
        block_size: positions per block, counted from position 0; None where the file does not say.
        mask_token_id: id of the mask token, the input at positions not yet revealed; None where the file does not say.
    """

    model_type = "sdar"

    def __init__(self, block_size: int | None = None, mask_token_id: int | None = None, **kwargs: Any) -> None:
        """Takes Qwen3's fields as keywords.

        Raises:
            ValueError: `block_size` below 1, or `mask_token_id` outside the vocabulary.
        """
        self.block_size = block_size
        self.mask_token_id = mask_token_id
        super().__init__(**kwargs)
        if block_size is not None and block_size < 1:
            raise ValueError(f"block_size: expected at least 1, found {block_size}")
        if mask_token_id is not None and not 0 <= mask_token_id < self.vocab_size:
            raise ValueError(f"mask_token_id: expected an id below vocab_size {self.vocab_size}, found {mask_token_id}")

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """What `from_pretrained` makes of a file's fields (`config_dict`) and its caller's (`kwargs`)."""
        fields = {name: value for name, value in config_dict.items() if "attn_implementation" not in name}
        return super().from_dict(fields, **kwargs)

    @property
    def mlp_width(self) -> int:
        """Numbers per token of what a layer's MLP holds at a time."""
        return self.intermediate_size

    @property
    def rotary_base(self) -> float:
        """The RoPE base, wherever the installed transformers keeps it."""
        parameters = self.__dict__.get("rope_parameters") or {}
        return parameters.get("rope_theta") or self.__dict__["rope_theta"]

    def to_dict(self) -> dict[str, Any]:
        """The fields of `config.json`, where every reader looks for them.

        transformers 5 keeps the RoPE base in `rope_parameters`, where 4.x does not look: without a top-level
        `rope_theta` an older reader would silently use 10,000.
        """
        fields = {**super().to_dict(), "rope_theta": self.rotary_base}
        unsaid = [name for name in ("block_size", "mask_token_id") if fields[name] is None]
        return {name: value for name, value in fields.items() if name not in unsaid}

    def to_diff_dict(self) -> dict[str, Any]:
        """What `save_pretrained` writes: engines read the type of the weights from `torch_dtype`, its older name."""
        fields = super().to_diff_dict()
        return fields if fields.get("dtype") is None else {**fields, "torch_dtype": fields["dtype"]}

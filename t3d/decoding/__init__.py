"""Block-diffusion decoding: `decode` for use, `t3d.decoding.plain` as the oracle it is tested against."""

from t3d.decoding.config import DecodingConfig
from t3d.decoding.engine import decode, iter_decode

__all__ = ["DecodingConfig", "decode", "iter_decode"]

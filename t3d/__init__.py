"""Few-step block-diffusion language models by trajectory self-distillation (T3D, arXiv:2602.12262)."""

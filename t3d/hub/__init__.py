"""Sharing on the Hugging Face hub: checkpoints as models, rollouts as data sets."""

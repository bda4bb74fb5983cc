"""A small world in which the whole method runs on a CPU: problems, tokenizer, model."""

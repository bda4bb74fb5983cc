"""Answers to mathematical problems: how they are read, and when two are the same (`comparison.same`)."""

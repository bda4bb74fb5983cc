"""Data sets: the benchmarks, fetching them, and stage 2."""

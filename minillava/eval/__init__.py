"""Evaluation: one file a benchmark, each run as `python -m minillava.eval.NAME`."""

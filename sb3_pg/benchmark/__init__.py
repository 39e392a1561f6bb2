"""Benchmarks against the peers. ``python -m sb3_pg.benchmark --help``."""

"""Benchmarks against the peers. ``sb3-pg benchmark --help``."""

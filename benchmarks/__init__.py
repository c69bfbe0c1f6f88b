"""Measurements of what we claim, each run as ``python -m benchmarks.NAME`` from the root of the repository."""

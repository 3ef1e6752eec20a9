"""Benchmark of the small model: `python dev.py run -m benchmarks.mini`."""

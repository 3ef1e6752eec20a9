"""The ablations of the MagDiff paper on the small model: `python dev.py run -m benchmarks.ablations`."""

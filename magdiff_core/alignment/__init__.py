"""The three alignments of MagDiff (ECCV 2024, section 3): subject-driven, adaptive prompts, high-fidelity."""

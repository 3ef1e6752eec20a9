"""Curation of raw videos into clips for the trainer (MagDiff, supplement C): captions, subject labels, masks, filters, report."""

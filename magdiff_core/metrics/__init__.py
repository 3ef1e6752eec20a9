"""Measurements of clips: closed-form ones for procedural clips, and how well a region was preserved."""

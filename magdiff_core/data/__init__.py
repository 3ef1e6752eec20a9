"""Procedural clips with captions and exact masks, and the words of their captions."""

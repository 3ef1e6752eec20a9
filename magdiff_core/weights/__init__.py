"""Checkpoint layouts: recognised by their keys, converted to the adapter format, or refused with what is missing."""

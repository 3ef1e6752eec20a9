"""MagDiff, ReVideo and UniVid for ComfyUI: the methods as plain torch, and `host`, their seat in ComfyUI."""

"""Numeric parity with stored results of another implementation: `python -m magdiff_core.host.parity FILE.safetensors`.

The file holds weights in their published layout, inputs, and what the other implementation made of them; FILE.json beside it
says how. Everything runs on ComfyUI's own UNet, sampler and conditioning, and on this pack's loader and patches.
One module per family of files; see `formats`.
"""

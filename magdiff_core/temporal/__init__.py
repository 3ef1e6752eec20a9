"""Layers that work along time: Temp-Conv, Temp-Attn and the norms whose statistics run over a whole clip."""

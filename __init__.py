"""MagDiff for ComfyUI."""

from .nodes import MagDiffExtension

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> MagDiffExtension:
    return MagDiffExtension()


__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]

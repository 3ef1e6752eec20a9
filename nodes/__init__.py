"""The pack's nodes, as ComfyUI's V3 extension."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from ..magdiff_core.host.folders import register_folders
from . import compose, conditioning, evaluate, keep_region, loaders, motion, revideo, revideo_long, sampling, subject, train, wan

MODULES = (loaders, compose, subject, conditioning, wan, motion, revideo, sampling, revideo_long, keep_region, evaluate, train)
NODES = [node for module in MODULES for node in module.NODES]


class MagDiffExtension(ComfyExtension):
    async def on_load(self) -> None:
        register_folders()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES

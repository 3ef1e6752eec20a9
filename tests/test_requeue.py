"""What a second queueing runs again, in a real server: a slider no encoder, a seed no loader."""

from __future__ import annotations

import copy

import pytest

pytestmark = pytest.mark.server

PROMPT = {
    "checkpoint": ("MagDiffLoadCheckpoint", {"checkpoint": "magdiff-mini.safetensors"}),
    "adapter": (
        "MagDiffApplyAdapter",
        {
            "model": ["checkpoint", 0], "adapter": "magdiff-mini-adapter.safetensors",
            "temporal_strength": 1.0, "image_strength": 1.0, "pyramid_strength": 1.0, "base_strength": 1.0,
        },
    ),
    "prompt": ("CLIPTextEncode", {"clip": ["checkpoint", 1], "text": "a red star moves left over a blue plain background"}),
    "no_prompt": ("CLIPTextEncode", {"clip": ["checkpoint", 1], "text": ""}),
    "picture": ("EmptyImage", {"width": 64, "height": 64, "batch_size": 1, "color": 0xC02020}),
    "tokens": (
        "MagDiffEncodeSubjectTokens", {"model": ["adapter", 0], "clip_vision": ["checkpoint", 3], "subject": ["picture", 0]},
    ),
    "apa": (
        "MagDiffAPAConditioning",
        {
            "positive": ["hfa", 0], "negative": ["hfa", 1], "clip_vision_output": ["tokens", 0],
            "alpha_text": 1.0, "alpha_image": 1.0, "start_percent": 0.0, "end_percent": 1.0, "mode": "adaptive",
        },
    ),
    "hfa": (
        "MagDiffHFAPyramidEncode",
        {
            "positive": ["prompt", 0], "negative": ["no_prompt", 0], "vae": ["checkpoint", 2], "subject": ["picture", 0],
            "mode": "generate", "width": 64, "height": 64, "frames": 2, "fit": "crop",
        },
    ),
    "sampler": (
        "MagDiffSampler",
        {
            "model": ["adapter", 0], "positive": ["apa", 0], "negative": ["apa", 1], "latent_image": ["hfa", 2],
            "seed": 1, "steps": 2, "cfg": 2.0, "denoise": 1.0,
        },
    ),
    "decode": ("VAEDecode", {"samples": ["sampler", 0], "vae": ["checkpoint", 2]}),
    "save": ("PreviewImage", {"images": ["decode", 0]}),
}  # fmt: skip


def run(server, **changes) -> set[str]:
    """Queue the prompt with changed inputs (node -> inputs); the names of the nodes that really ran."""
    prompt = {name: {"class_type": kind, "inputs": copy.deepcopy(inputs)} for name, (kind, inputs) in PROMPT.items()}
    for name, inputs in changes.items():
        prompt[name]["inputs"].update(inputs)
    cached: set[str] = set()
    server.queue(prompt, lambda kind, data: cached.update(data["nodes"]) if kind == "execution_cached" else None)
    return set(prompt) - cached


def test_a_slider_runs_no_encoder_and_a_seed_no_loader(server):
    assert run(server) >= {"tokens", "apa", "hfa", "sampler"}
    after_seed = run(server, sampler={"seed": 2})
    assert after_seed == {"sampler", "decode", "save"}
    after_slider = run(server, sampler={"seed": 2}, apa={"alpha_image": 0.5})
    assert after_slider == {"apa", "sampler", "decode", "save"}

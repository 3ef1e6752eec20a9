"""Small Wan models with random weights, and the forward of Wan 2.1 image-to-video written again from its weights.

The forward follows the published architecture, in float32 and without anything of ComfyUI's: so it can be compared with.
"""

from __future__ import annotations

import math
from collections.abc import Container

import torch
from torch import Tensor
from torch.nn import functional as F

DIM, HEADS, FEED_FORWARD, BLOCKS = 24, 2, 32, 3
TEXT, TEXT_TOKENS = 20, 7
PICTURE, PICTURE_TOKENS = 1280, 257
LATENT, FRAMES, SIDE = 16, 2, 4
CONCAT = 20
"""Channels beside the noise: 4 of the mask and 16 of the picture's latent."""
FREQUENCIES = 256


def weights(picture: bool = True, concat: bool = True, dim: int = DIM, text: int = TEXT, first_last: bool = False, seed: int = 0):
    """Random weights of a Wan model by key; `first_last`: with the positions of two pictures, as FLF2V has."""
    generator = torch.Generator().manual_seed(seed)
    feed_forward = FEED_FORWARD * dim // DIM

    def linear(key: str, into: int, outof: int) -> dict[str, Tensor]:
        weight = torch.randn(into, outof, generator=generator) * outof**-0.5
        return {f"{key}.weight": weight, f"{key}.bias": 0.1 * torch.randn(into, generator=generator)}

    def norm(key: str, width: int, bias: bool = True) -> dict[str, Tensor]:
        made = {f"{key}.weight": 1 + 0.2 * torch.randn(width, generator=generator)}
        return made | ({f"{key}.bias": 0.1 * torch.randn(width, generator=generator)} if bias else {})

    channels = LATENT + (CONCAT if concat else 0)
    made = {
        "patch_embedding.weight": torch.randn(dim, channels, 1, 2, 2, generator=generator) * (4 * channels) ** -0.5,
        "patch_embedding.bias": 0.1 * torch.randn(dim, generator=generator),
        "head.modulation": 0.2 * torch.randn(1, 2, dim, generator=generator),
    }
    made |= linear("text_embedding.0", dim, text) | linear("text_embedding.2", dim, dim)
    made |= linear("time_embedding.0", dim, FREQUENCIES) | linear("time_embedding.2", dim, dim)
    made |= linear("time_projection.1", 6 * dim, dim) | linear("head.head", 4 * LATENT, dim)
    for block in range(BLOCKS):
        root = f"blocks.{block}"
        for attention in ("self_attn", "cross_attn"):
            for layer in "qkvo":
                made |= linear(f"{root}.{attention}.{layer}", dim, dim)
            for layer in "qk":
                made |= norm(f"{root}.{attention}.norm_{layer}", dim, bias=False)
        if picture:
            made |= linear(f"{root}.cross_attn.k_img", dim, dim) | linear(f"{root}.cross_attn.v_img", dim, dim)
            made |= norm(f"{root}.cross_attn.norm_k_img", dim, bias=False)
        made |= norm(f"{root}.norm3", dim)
        made |= linear(f"{root}.ffn.0", feed_forward, dim) | linear(f"{root}.ffn.2", dim, feed_forward)
        made[f"{root}.modulation"] = 0.2 * torch.randn(1, 6, dim, generator=generator)
    if picture:
        made |= norm("img_emb.proj.0", PICTURE) | linear("img_emb.proj.1", PICTURE, PICTURE)
        made |= linear("img_emb.proj.3", dim, PICTURE) | norm("img_emb.proj.4", dim)
        if first_last:
            made["img_emb.emb_pos"] = 0.2 * torch.randn(1, 2 * PICTURE_TOKENS, PICTURE, generator=generator)
    return made


def load(state_dict: dict[str, Tensor]):
    """The MODEL that ComfyUI makes of such weights, computing in float32."""
    import json

    import comfy.sd

    # what ComfyUI does not read off the keys
    told = {"text_dim": state_dict["text_embedding.0.weight"].shape[1], "num_heads": HEADS}
    return comfy.sd.load_diffusion_model_state_dict(
        {key: value.clone() for key, value in state_dict.items()},
        model_options={"dtype": torch.float32},
        metadata={"config": json.dumps({"transformer": told})},
    )


def forward(
    w: dict[str, Tensor],
    latents: Tensor,
    timestep: Tensor,
    text: Tensor,
    picture: Tensor,
    alpha_text: float = 1.0,
    alpha_image: float = 1.0,
    blocks: Container[int] = range(BLOCKS),
) -> Tensor:
    """Wan 2.1 image-to-video with MagDiff's eq. 3 in its cross-attention, in `blocks`.

    latents `[B, 36, F, h, w]`, timestep `[B]`, text `[B, L, TEXT]`, picture `[B, 257 or 514, 1280]`.
    """

    def linear(key: str, x: Tensor) -> Tensor:
        return x @ w[f"{key}.weight"].T + w[f"{key}.bias"]

    def layer_norm(x: Tensor, key: str | None = None, eps: float = 1e-6) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + eps).sqrt()
        return x if key is None else x * w[f"{key}.weight"] + w[f"{key}.bias"]

    def rms_norm(key: str, x: Tensor) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * w[f"{key}.weight"]

    def gelu(x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh")

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (HEADS, -1)).movedim(-2, 1) for t in (q, k, v))
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        return (weights @ v).movedim(1, -2).flatten(-2)

    batch, _, frames, height, width = latents.shape
    grid = (frames, height // 2, width // 2)
    x = F.conv3d(latents, w["patch_embedding.weight"], w["patch_embedding.bias"], stride=(1, 2, 2)).flatten(2).mT

    half = FREQUENCIES // 2
    angles = timestep[:, None] * 10000.0 ** (-torch.arange(half) / half)
    e = linear("time_embedding.2", F.silu(linear("time_embedding.0", torch.cat((angles.cos(), angles.sin()), -1))))
    modulation = linear("time_projection.1", F.silu(e)).unflatten(1, (6, -1))

    # rotary positions: of a head's channels a part for the frame, one for the row and one for the column
    width_head = x.shape[-1] // HEADS
    sixth = width_head // 6
    parts = (width_head - 4 * sixth, 2 * sixth, 2 * sixth)
    places = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float32) for n in grid))
    turns = [places[:, axis : axis + 1] * 10000.0 ** (-torch.arange(0, part, 2) / part) for axis, part in enumerate(parts)]
    turn = torch.polar(torch.ones(1), torch.cat(turns, 1))[:, None]

    def rotate(t: Tensor) -> Tensor:
        pairs = torch.view_as_complex(t.unflatten(-1, (HEADS, -1, 2)).contiguous())
        return torch.view_as_real(pairs * turn).flatten(-3)

    text = linear("text_embedding.2", gelu(linear("text_embedding.0", text)))
    if "img_emb.emb_pos" in w:
        picture = picture + w["img_emb.emb_pos"]
    picture = linear("img_emb.proj.1", layer_norm(picture, "img_emb.proj.0", 1e-5))
    picture = layer_norm(linear("img_emb.proj.3", F.gelu(picture)), "img_emb.proj.4", 1e-5)

    for block in range(BLOCKS):
        root = f"blocks.{block}"
        if f"{root}.modulation" not in w:
            continue
        m = (w[f"{root}.modulation"] + modulation).unbind(1)
        m = [row[:, None] for row in m]
        h = layer_norm(x) * (1 + m[1]) + m[0]
        own = f"{root}.self_attn"
        q, k = (rotate(rms_norm(f"{own}.norm_{n}", linear(f"{own}.{n}", h))) for n in "qk")
        x = x + m[2] * linear(f"{own}.o", attention(q, k, linear(f"{own}.v", h)))

        cross = f"{root}.cross_attn"
        q = rms_norm(f"{cross}.norm_q", linear(f"{cross}.q", layer_norm(x, f"{root}.norm3")))
        of_text = attention(q, rms_norm(f"{cross}.norm_k", linear(f"{cross}.k", text)), linear(f"{cross}.v", text))
        k = rms_norm(f"{cross}.norm_k_img", linear(f"{cross}.k_img", picture))
        of_picture = attention(q, k, linear(f"{cross}.v_img", picture))
        if block in blocks:
            of_text, of_picture = alpha_text * of_text, alpha_image * of_picture
        x = x + linear(f"{cross}.o", of_text + of_picture)

        h = layer_norm(x) * (1 + m[4]) + m[3]
        x = x + m[5] * linear(f"{root}.ffn.2", gelu(linear(f"{root}.ffn.0", h)))

    shift, scale = (w["head.modulation"] + e[:, None]).unbind(1)
    x = linear("head.head", layer_norm(x) * (1 + scale[:, None]) + shift[:, None])
    x = x.unflatten(1, grid).unflatten(-1, (1, 2, 2, LATENT))
    return torch.einsum("bfhwpqrc->bcfphqwr", x).reshape(batch, LATENT, frames, height, width)

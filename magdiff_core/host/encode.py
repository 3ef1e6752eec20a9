"""Encode subject pictures: tokens of the image encoder, and the VAE pyramid."""

from __future__ import annotations

import comfy.model_management
import torch
from torch import Tensor

from ..alignment.hfa import fit, pyramid_sizes, resize
from ..config import GREY_PICTURE, POOLED_LAYER, SAME_PICTURE, TOKENS_OF_CLIP, ZERO_PICTURE
from ..images import clean_images
from .attach import adapter_of
from .checks import check_token_width
from .conds import GENERATE, SubjectLatents, SubjectTokens

GREY = 0.5
"""The middle between black and white: 0 in the range that VideoCrafter and DynamiCrafter give to their image encoder."""
ENCODE_CHUNK = 16
"""Pictures that the image encoder takes at once: long clips would not fit."""


def encode_subject_tokens(model, clip_vision, subject: Tensor):
    """Subject pictures `[n, H, W, 3]` on black -> CLIP_VISION_OUTPUT with n entries and those that the adapter wants besides: the
    picture that its negative reads, and, last, the black frame.

    `model` (with an adapter) tells hidden layer, crop and channel order. Raises ValueError without an adapter, without an image
    stream in it, or for an image encoder of another width.
    """
    patcher = adapter_of(model)
    if patcher is None:
        raise ValueError("this MODEL has no MagDiff adapter: wire the output of Apply MagDiff Adapter or Load MagDiff Checkpoint")
    adapter = patcher.model
    if adapter.apa is None:
        raise ValueError("the adapter on this MODEL has no image stream (apa.*), so subject tokens cannot act")
    encoder = adapter.config.image_encoder
    subject = clean_images(subject, "subject")
    has_negative = adapter.config.negative_picture != SAME_PICTURE
    has_black = adapter.config.image_tokens == TOKENS_OF_CLIP
    blank = torch.zeros_like(subject[:1])
    has_grey = adapter.config.negative_picture == GREY_PICTURE
    pictures = torch.cat((subject, *([blank + GREY] if has_grey else []), *([blank] if has_black else [])))
    if encoder.channels == "bgr":
        pictures = pictures.flip(-1)
    outputs = []
    for chunk in pictures.split(ENCODE_CHUNK):
        comfy.model_management.throw_exception_if_processing_interrupted()
        outputs.append(clip_vision.encode_image(chunk, crop=encoder.crop))
        seen = outputs[0].image_embeds if encoder.layer == POOLED_LAYER else outputs[0].last_hidden_state
        check_token_width(seen.shape[-1], adapter.config)
    output = outputs[0]
    zero = _zero_entry(clip_vision) if adapter.config.negative_picture == ZERO_PICTURE else {}
    for name in ("last_hidden_state", "penultimate_hidden_states", "image_embeds"):
        states = torch.cat([part[name] for part in outputs])
        if zero:
            states = torch.cat((states[: len(subject)], zero[name].to(states), states[len(subject) :]))
        output[name] = states
    output.negative_entry = has_negative
    output.black_entry = has_black
    return output


def _zero_entry(clip_vision) -> dict[str, Tensor]:
    """What IP-Adapter's negative reads, by name in a CLIP_VISION_OUTPUT: hidden states for an input of zeros behind the encoder's
    own normalisation, and zeros for the embedding."""
    comfy.model_management.load_model_gpu(clip_vision.patcher)
    side = clip_vision.image_size
    pixels = torch.zeros(1, 3, side, side, device=clip_vision.load_device)
    last, penultimate, embedding = clip_vision.model(pixel_values=pixels, intermediate_output=-2)[:3]
    return {
        "last_hidden_state": last,
        "penultimate_hidden_states": penultimate,
        "image_embeds": torch.zeros_like(embedding),
    }


def subject_tokens(clip_vision_output) -> SubjectTokens:
    """What APA Conditioning attaches, from Encode Subject Tokens or core's CLIP Vision Encode (which has no black entry)."""
    layers = {
        "last": clip_vision_output.last_hidden_state,
        "penultimate": getattr(clip_vision_output, "penultimate_hidden_states", None),
    }
    embeddings = getattr(clip_vision_output, "image_embeds", None)
    if embeddings is not None:
        # One token a picture.
        layers[POOLED_LAYER] = embeddings[:, None]
    rows = {name: states[None] for name, states in layers.items() if states is not None}
    extra = {name: getattr(clip_vision_output, name, False) for name in ("black_entry", "negative_entry")}
    return SubjectTokens(rows, **extra)


def encode_subject_pyramid(
    vae, subject: Tensor, mode: str, width: int, height: int, frames: int, fit_mode: str
) -> tuple[SubjectLatents, Tensor]:
    """Subject pictures `[n, H, W, 3]` on black -> pyramid latents and an empty LATENT `[F, C, h, w]` of the same clip.

    Generate: one picture, or two for the first and the last frame, fitted to `width` x `height`, for a clip of `frames`. Edit: one
    picture a frame, at their own size.
    Raises ValueError for a video VAE, a wrong count of pictures, or sides that the VAE cannot divide.
    """
    if vae.latent_dim != 2:
        raise ValueError("this VAE is a video VAE: HFA Pyramid Encode needs the picture VAE of the SD1.5 or SD2.1 base")
    subject = clean_images(subject, "subject")
    factor = vae.spacial_compression_encode()
    if mode == GENERATE:
        if subject.shape[0] not in (1, 2):
            raise ValueError(
                f"subject has {subject.shape[0]} pictures, mode generate takes one (or first and last frame): choose mode edit, or "
                "pick one picture"
            )
    else:
        height, width = subject.shape[1:3]
        frames = subject.shape[0]
    for name, side in (("width", width), ("height", height)):
        if side % factor or side == 0:
            below = side - side % factor
            raise ValueError(
                f"{name} is {side}, the VAE needs a multiple of {factor}: use {max(below, factor)} or {below + factor}"
            )
    pictures = subject.shape[0] if mode == GENERATE else 1
    if mode == GENERATE:
        subject = fit(subject, height, width, fit_mode)
        if frames > 1:
            subject = torch.cat((subject, torch.zeros_like(subject[:1])))
    levels = []
    for level_height, level_width in pyramid_sizes(height // factor, width // factor):
        pixels = resize(subject.movedim(-1, 1), level_height * factor, level_width * factor).clamp(0.0, 1.0).movedim(1, -1)
        levels.append(vae.encode(pixels)[None])
    empty = levels[0].new_zeros(frames, *levels[0].shape[2:])
    return SubjectLatents(tuple(levels), frames, mode, pictures), empty

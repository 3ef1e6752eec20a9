"""Where in the frames each word of the prompt is read: the weights of the text stream of cross-attention, seen while sampling."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from magdiff_core.data.vocabulary import WordTokenizer

CONDITIONAL = 0
"""Core's number of the prompt's rows in `cond_or_uncond`."""


class TextAttention:
    """attn2_replace of one transformer block: softmax attention over the prompt, as ComfyUI computes it, with its weights kept.

    Set before Apply MagDiff Adapter, it serves as the text stream there and is weighed like it. `kept`: one `[F, h * w, L]` a step,
    mean over heads, rows of the prompt only.
    """

    def __init__(self) -> None:
        self.kept: list[Tensor] = []

    def __call__(self, q: Tensor, key: Tensor, value: Tensor, extra_options: dict) -> Tensor:
        q, key, value = (x.unflatten(-1, (extra_options["n_heads"], -1)).transpose(1, 2) for x in (q, key, value))
        weights = (q @ key.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        clips = weights.mean(1).chunk(len(extra_options["cond_or_uncond"]))
        self.kept += [rows.float().cpu() for rows, kind in zip(clips, extra_options["cond_or_uncond"]) if kind == CONDITIONAL]
        return (weights.to(value.dtype) @ value).transpose(1, 2).flatten(2)


def observe(model) -> tuple[object, dict[str, TextAttention]]:
    """A clone of a MODEL whose cross-attentions keep their weights, and what keeps them by the name of the transformer block."""
    from comfy.ldm.modules.attention import BasicTransformerBlock

    from magdiff_core.host.neighbours import attention_key

    model = model.clone()
    unet: nn.Module = model.model.diffusion_model
    observers = {name: TextAttention() for name, layer in unet.named_modules() if isinstance(layer, BasicTransformerBlock)}
    for site, observer in observers.items():
        model.set_model_attn2_replace(observer, *attention_key(site))
    return model, observers


def by_site(observers: dict[str, TextAttention], steps: slice, height: int, width: int) -> dict[str, Tensor]:
    """Weights `[F, h, w, L]` of every site, each on its own grid, mean over `steps`.

    Args:
        height, width: of the frames; only their ratio matters.

    Raises:
        ValueError: no step was kept.
    """
    if not any(observer.kept[steps] for observer in observers.values()):
        raise ValueError("no cross-attention was kept: sample with the observed model first")
    means = {site: torch.stack(observer.kept[steps]).mean(0) for site, observer in observers.items() if observer.kept[steps]}
    return {site: weights.unflatten(1, (round((weights.shape[1] * height / width) ** 0.5), -1)) for site, weights in means.items()}


def over_sites(maps: list[Tensor]) -> Tensor:
    """Mean of maps `[F, h, w]` of different sizes, on the finest of their grids; every site counts the same."""
    size = max((attention.shape[1:] for attention in maps), key=lambda shape: shape[0])
    return torch.stack([nn.functional.interpolate(attention[:, None], size, mode="nearest")[:, 0] for attention in maps]).mean(0)


def word_places(prompt: str, phrase: str) -> slice:
    """Places of the words of `phrase` among the tokens of `prompt`, the start token being place 0.

    Raises:
        ValueError: they do not stand in the prompt, or stand there twice.
    """
    tokenizer = WordTokenizer()
    tokens, wanted = tokenizer(prompt)["input_ids"], tokenizer(phrase)["input_ids"][1:-1]
    found = [place for place in range(len(tokens)) if tokens[place : place + len(wanted)] == wanted]
    if not wanted or len(found) != 1:
        raise ValueError(f"{phrase!r} stands {len(found) if wanted else 0} times in {prompt!r}: it must stand there once")
    return slice(found[0], found[0] + len(wanted))


def focus(attention: Tensor, subject_mask: Tensor) -> tuple[float, float] | None:
    """How much of a word's attention falls on the subject, over the whole clip.

    Args:
        attention: `[F, h, w]`, not negative.
        subject_mask: `[F, H, W]`, bool or 0..1, at a whole multiple of that size.

    Returns:
        the share of the attention inside the subject and the subject's share of the area, both 0..1; their ratio is the focus
        ratio, 1 where a word does not care. None where there is no subject.

    Raises:
        ValueError: the sizes do not divide.
    """
    (frames, height, width), (_, tall, wide) = attention.shape, subject_mask.shape
    if tall % height or wide % width or len(subject_mask) != frames:
        raise ValueError(f"attention is {list(attention.shape)}, which does not divide the mask's {list(subject_mask.shape)}")
    mask = nn.functional.avg_pool2d(subject_mask.float()[:, None], (tall // height, wide // width))[:, 0]
    area = float(mask.mean())
    return (float((attention * mask).sum() / attention.sum()), area) if area else None

"""CLIP's tokenizer, from the vocabulary that ComfyUI brings."""

from __future__ import annotations

import functools

import torch

from .session import find_comfyui


@functools.lru_cache(maxsize=1)
def _tokenizer():
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(str(find_comfyui() / "comfy" / "sd1_tokenizer"))


def tokenize(prompts: list[str], length: int) -> tuple[torch.Tensor, list[bool]]:
    """Texts as CLIP was trained on them.

    Args:
        prompts: plain text; weights in brackets have no meaning here.
        length: places that the text tower has, 77.

    Returns:
        token ids `[n, length]`, zero behind the end of text, and which texts were cut.
    """
    tokens, cut = torch.zeros(len(prompts), length, dtype=torch.long), []
    for row, prompt in enumerate(prompts):
        ids = _tokenizer()(prompt)["input_ids"]
        cut.append(len(ids) > length)
        if cut[-1]:
            ids = [*ids[: length - 1], ids[-1]]
        tokens[row, : len(ids)] = torch.tensor(ids)
    return tokens, cut

"""PIA: motion modules and a first convolution that sees a picture, against diffusers."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from diffusers_models import (
    FRAMES,
    HEADS_SD15,
    LATENT,
    as_animatediff_runs,
    motion_adapter,
    original_motion_keys,
    random_latent,
    random_text,
    randomise,
    sd15_unet,
)

from magdiff_core.adapter import MagDiffAdapter
from magdiff_core.weights.adapter_layouts import read_adapter_weights
from magdiff_core.weights.families import families_of
from magdiff_core.weights.pia import AFFINITY, read_pia

FULL_WIDTHS = (320, 640, 1280, 1280)


@pytest.mark.parametrize("own", [True, False])
def test_full_size_is_converted_without_a_rest(own):
    with torch.device("meta"):
        weights = motion_adapter(FULL_WIDTHS, conv_in=9).state_dict()
    weights = original_motion_keys(weights) if own else weights
    assert [family.name for family in families_of(weights)] == ["PIA"]
    parts = read_pia(weights)
    assert parts.adapter["hfa.conv_z.weight"].shape == (320, 5, 3, 3)
    assert parts.unused == ("conv_in.weight[:, :4]", "conv_in.bias"), "the base keeps its own, as in PIA's code"
    with torch.device("meta"):
        adapter = MagDiffAdapter({key: value.shape for key, value in parts.adapter.items()}, parts.config)
    assert {k: v.shape for k, v in adapter.state_dict().items()} == {k: v.shape for k, v in parts.adapter.items()}
    assert parts.config.clip_norm == own, "PIA's own code takes the norms of ResBlocks over the clip"


def peer_affinity(frames: int, picture_at: int = 0, motion: int = 0) -> list[float]:
    """diffusers' affinity of each frame; `motion` 0 is its smallest."""
    from diffusers import PIAPipeline

    return inspect.getmodule(PIAPipeline).prepare_mask_coef_by_statistics(frames, picture_at, motion)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("mid", [True, False])
def test_parity(comfy_session, own, mid):
    import diffusers_models
    from diffusers import UNetMotionModel
    from peer_run import TIMESTEP, base_model, check, ldm_names, predict, with_adapter

    from magdiff_core.host.conds import GENERATE, SubjectLatents, attach

    frames = 2 * FRAMES + 1
    spatial = randomise(sd15_unet(), seed=1)
    motion = randomise(motion_adapter(mid=mid, conv_in=9), seed=2)
    peer = UNetMotionModel.from_unet2d(copy.deepcopy(spatial), motion).eval()
    if own:
        peer = as_animatediff_runs(peer, clip_norm=True, frames=frames)
    parts = read_pia(original_motion_keys(motion.state_dict()) if own else motion.state_dict())
    model = with_adapter(base_model(ldm_names(spatial.state_dict()), heads=HEADS_SD15), parts.adapter, parts.config)

    picture = torch.randn(1, 4, *LATENT, generator=torch.Generator().manual_seed(5))
    levels = tuple(torch.randn(1, 2, 4, *LATENT, generator=torch.Generator().manual_seed(seed)) for seed in (6, 7))
    # The VAE's latent is not yet scaled; the second entry is the black frame, which PIA has no use for.
    base_level = torch.stack((picture / 0.18215, torch.ones_like(picture)), dim=1)
    latents = SubjectLatents((base_level, *levels), frames, GENERATE)
    texts = random_text(11), random_text(12)
    positive, negative = (attach([[text, {}]], latents=latents) for text in texts)
    latent = random_latent(frames=frames)
    rows = predict(model, latent, positive, negative)

    affinity = torch.tensor(peer_affinity(frames)).view(frames, 1, 1, 1).expand(frames, 1, *LATENT)
    seen = torch.cat((latent, affinity, picture.expand(frames, -1, -1, -1)), dim=1)
    for row, text in zip(rows, texts, strict=True):
        check(row, diffusers_models.predict(peer, seen, TIMESTEP, text))


def test_affinity_is_that_of_small_motion():

    assert list(AFFINITY) == peer_affinity(len(AFFINITY))
    assert peer_affinity(16)[len(AFFINITY) :] == [AFFINITY[-1]] * (16 - len(AFFINITY))


def small(conv_in: int) -> dict[str, torch.Tensor]:
    return original_motion_keys(randomise(motion_adapter(conv_in=conv_in)).state_dict())


def test_another_first_convolution_is_refused():
    with pytest.raises(ValueError, match="takes 8 channels, not 9.*pia.ckpt"):
        read_pia(small(8))


def test_a_partial_file_is_refused():
    weights = {key: value for key, value in small(9).items() if not key.startswith("up_blocks.2")}
    with pytest.raises(ValueError, match="78 of .* missing"):
        read_pia(weights)


def test_a_trainers_checkpoint_with_a_plain_convolution_is_animatediff():
    parts = read_pia(small(4))
    assert parts.layout == "AnimateDiff v2" and "hfa.conv_z.weight" not in parts.adapter and "conv_in.weight" in parts.unused


def test_what_is_not_used_is_said(caplog):
    read_adapter_weights(small(9), {})
    assert "2 of its tensors are not used, such as conv_in.weight[:, :4]" in caplog.text

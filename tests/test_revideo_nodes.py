"""ReVideo's nodes from a file to a clip, called as ComfyUI calls them, on a small checkpoint of the published layout."""

from __future__ import annotations

import logging

import pytest
import revideo_files
import torch
from test_nodes import AUTOENCODER, CLIP_VISION

F, W, H = revideo_files.CLIP_FRAMES, 64, 64
NAME = "small-revideo.safetensors"


@pytest.fixture(scope="module")
def rig(comfy_session):
    import video_run

    return video_run


@pytest.fixture(scope="module")
def file(pack):
    import folder_paths

    folder = folder_paths.get_folder_paths("magdiff")[0]
    from pathlib import Path

    Path(folder).mkdir(parents=True, exist_ok=True)
    path = revideo_files.save(Path(folder) / NAME)
    yield NAME
    path.unlink()


@pytest.fixture(scope="module")
def loaded(pack, file):
    """model, clip_vision, vae, control."""
    return pack["MagDiffLoadReVideo"].execute(file).args


@pytest.fixture(scope="module")
def encoders(rig):
    """A tiny image encoder and autoencoder."""
    import comfy.sd
    from comfy.clip_vision import ClipVisionModel
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from tiny import randomise

    torch.manual_seed(1)
    with torch.inference_mode(False):
        encoder = ClipVisionModel(CLIP_VISION)
        randomise(encoder.model)
        model = AutoencoderKL(ddconfig=AUTOENCODER, embed_dim=4)
        randomise(model)
        vae = comfy.sd.VAE(sd=model.state_dict(), config={"params": {"ddconfig": AUTOENCODER, "embed_dim": 4}})
    return encoder, vae


def clip(frames: int = F, width: int = W, height: int = H) -> torch.Tensor:
    return torch.rand(frames, height, width, 3, generator=torch.Generator().manual_seed(4))


def conditioning(pack, encoders, edited_frame=None, **changes):
    given = {
        "resolution": "custom",
        "width": W,
        "height": H,
        "frames": F,
        "fps": 10,
        "motion_bucket_id": 127,
        "augmentation_level": 0.02,
        "seed": 23,
    } | changes
    edited_frame = clip(1) if edited_frame is None else edited_frame
    return pack["MagDiffReVideoImageConditioning"].execute(*encoders, edited_frame, **given).args


def tracks(frames: int = F, start=(20.5, 30.5), step=(6.0, 0.0)) -> dict:
    path = torch.tensor(start) + torch.arange(frames)[:, None, None] * torch.tensor(step)
    return {"track_path": path, "track_visibility": torch.ones(frames, 1, dtype=torch.bool)}


def region() -> torch.Tensor:
    edit_mask = torch.zeros(1, H, W)
    edit_mask[:, 16:48, 8:56] = 1.0
    return edit_mask


def fuse(pack, positive, negative, control, source_frames=None, edit_mask=None, paths=None, **changes):
    given = {
        "strength": 1.0,
        "start_percent": 0.0,
        "end_percent": 1.0,
        "fusion": "safm",
        "motion_maps": "default",
    } | changes
    return pack["MagDiffSAFMTrajectoryFuse"].execute(
        positive,
        negative,
        control,
        clip() if source_frames is None else source_frames,
        region() if edit_mask is None else edit_mask,
        tracks() if paths is None else paths,
        **given,
    ).args


def sample(loaded, positive, negative, frames: int = F, steps: int = 2, cfg: float = 3.0) -> torch.Tensor:
    import comfy.sample

    noise = torch.randn(frames, 4, H // 8, W // 8, generator=torch.Generator().manual_seed(9))
    return comfy.sample.sample(
        loaded[0], noise, steps, cfg, "euler", "karras", positive, negative, torch.zeros_like(noise), seed=1, disable_pbar=True
    )


@pytest.fixture(scope="module")
def told(pack, encoders):
    """positive, negative, latent."""
    return conditioning(pack, encoders)


@pytest.fixture(scope="module")
def plain(loaded, told):
    return sample(loaded, *told[:2])


@pytest.fixture(scope="module")
def edited(pack, loaded, told):
    return sample(loaded, *fuse(pack, *told[:2], loaded[3]))


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def test_parts_that_the_file_lacks_block_what_is_behind_them(loaded):
    from comfy_execution.graph_utils import ExecutionBlocker

    _, clip_vision, vae, _ = loaded
    for part, name in ((clip_vision, "clip_vision"), (vae, "vae")):
        assert isinstance(part, ExecutionBlocker)
        assert f"{NAME} holds no {name}: use Image Only Checkpoint Loader" in part.message


def test_from_a_file_to_a_clip(plain, edited, told):
    assert told[2]["samples"].shape == (F, 4, H // 8, W // 8)
    assert torch.isfinite(edited).all()
    assert difference(edited, plain) > 0.01


def test_each_input_matters(pack, loaded, told, edited):
    control, conds = loaded[3], told[:2]
    for changes in (
        {"source_frames": clip().flip(0)},
        {"edit_mask": 1.0 - region()},
        {"paths": tracks(step=(0.0, 6.0))},
        {"strength": 0.5},
        {"end_percent": 0.5},
        {"fusion": "direct sum"},
        {"fusion": "no time"},
    ):
        got = sample(loaded, *fuse(pack, *conds, control, **changes))
        assert difference(got, edited) > 1e-4, changes


@pytest.mark.parametrize("changes", [{"strength": 0.0}, {"start_percent": 0.6, "end_percent": 0.6}])
def test_switched_off_it_is_the_plain_model_exactly(pack, loaded, told, plain, changes):
    got = fuse(pack, *told[:2], loaded[3], **changes)
    assert got == told[:2]
    assert torch.equal(sample(loaded, *got), plain)


def test_without_control_the_loaded_model_is_cores_own_exactly(loaded, told, plain):
    """What Load ReVideo puts on the model for context windows changes nothing elsewhere."""
    from comfy.patcher_extension import WrappersMP

    from magdiff_core.host.revideo_base import WRAPPER_KEY

    vanilla = loaded[0].clone()
    assert vanilla.wrappers[WrappersMP.APPLY_MODEL].pop(WRAPPER_KEY)
    assert not any(vanilla.wrappers.values()) and not vanilla.patches and not vanilla.object_patches
    assert torch.equal(sample((vanilla,), *told[:2]), plain)


def test_positive_and_negative_share_one_object_and_keep_what_they_carry(pack, loaded, told):
    once = fuse(pack, *told[:2], loaded[3])
    twice = fuse(pack, *once, loaded[3], paths=tracks(step=(0.0, 3.0)))
    first, second = once[0][0][1]["control"], twice[0][0][1]["control"]
    assert once[1][0][1]["control"] is first and twice[1][0][1]["control"] is second
    assert second.previous_controlnet is first and first.previous_controlnet is None
    assert "control" not in told[0][0][1], "what came in is left alone"
    assert twice[0][0][1]["concat_latent_image"] is told[0][0][1]["concat_latent_image"]


def test_different_controls_before_it_are_kept_apart(pack, loaded, told):
    one, other = object(), object()
    positive = [[told[0][0][0], {**told[0][0][1], "control": one}]]
    negative = [[told[1][0][0], {**told[1][0][1], "control": other}]]
    got = fuse(pack, positive, negative, loaded[3])
    assert got[0][0][1]["control"].previous_controlnet is one
    assert got[1][0][1]["control"].previous_controlnet is other


def test_a_mask_for_each_frame_and_one_for_all_agree(pack, loaded, told, edited):
    got = sample(loaded, *fuse(pack, *told[:2], loaded[3], edit_mask=region().expand(F, -1, -1)))
    assert difference(got, edited) < 1e-6


def test_the_reference_maps_agree_where_positions_are_whole_pixels(pack, loaded, told, edited):
    got = sample(loaded, *fuse(pack, *told[:2], loaded[3], motion_maps="reference"))
    assert difference(got, edited) < 1e-5
    between = tracks(start=(20.9, 30.9), step=(5.7, 0.0))
    maps = [sample(loaded, *fuse(pack, *told[:2], loaded[3], paths=between, motion_maps=m)) for m in ("default", "reference")]
    assert difference(*maps) > 1e-5


def test_a_source_of_another_size_is_fitted(pack, loaded, told, edited):
    large = torch.nn.functional.interpolate(clip().movedim(-1, 1), scale_factor=2, mode="nearest").movedim(1, -1)
    mask = torch.nn.functional.interpolate(region()[None], scale_factor=2, mode="nearest")[0]
    paths = tracks(start=(41.0, 61.0), step=(12.0, 0.0))
    got = sample(loaded, *fuse(pack, *told[:2], loaded[3], large, mask, paths))
    assert difference(got, edited) < 0.05


def test_context_windows_with_the_causal_fix(pack, loaded, encoders):
    """Core's fix gives later windows one frame more; the model takes it in its stride."""
    import tiny_run

    frames = 7
    positive, negative, _ = conditioning(pack, encoders, frames=frames)
    positive, negative = fuse(pack, positive, negative, loaded[3], clip(frames), paths=tracks(frames, step=(4.0, 0.0)))
    for anchor in (False, True):
        model = tiny_run.windowed(loaded[0], F, 1, anchor=anchor)
        got = sample((model,), positive, negative, frames, steps=1)
        assert got.shape[0] == frames and torch.isfinite(got).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"source_frames": torch.rand(2, H, W, 3), "paths": tracks(2)}, "2 frames, this control was trained on clips of 3"),
        ({"paths": tracks(5)}, "tracks has 5 frames, the clip 3"),
        ({"paths": {"track_path": torch.zeros(F, 0, 2)}}, "tracks holds no point"),
        ({"paths": tracks(start=(900.0, 30.0))}, "no point of tracks is ever visible inside of source_frames .64x64."),
        ({"edit_mask": torch.zeros(1, H, W)}, "edit_mask is empty.*invert the mask"),
        ({"edit_mask": torch.ones(2, H, W)}, "edit_mask has 2 frames, the images have 3"),
        ({"source_frames": torch.full((F, H, W, 3), float("nan"))}, "NaN"),
    ],
)
def test_bad_input_is_refused_at_the_node(pack, loaded, told, changes, words):
    with pytest.raises(ValueError, match=words):
        fuse(pack, *told[:2], loaded[3], **changes)


def test_a_full_region_and_some_lost_tracks_are_said(pack, loaded, told, caplog):
    outside = tracks()
    outside["track_path"] = torch.cat((outside["track_path"], outside["track_path"] + 500), 1)
    with caplog.at_level(logging.WARNING, "magdiff"):
        fuse(pack, *told[:2], loaded[3], edit_mask=torch.ones(1, H, W), paths=outside)
    assert "covers the whole picture" in caplog.text
    assert "1 of 2 tracks are never visible" in caplog.text


def test_another_length_or_shape_of_the_latent_is_refused(pack, loaded, encoders):
    longer = conditioning(pack, encoders, frames=5)
    with pytest.raises(ValueError, match="the LATENT has 5 frames, source_frames of SAFM Trajectory Fuse 3"):
        sample(loaded, *fuse(pack, *longer[:2], loaded[3]), frames=5)
    told = conditioning(pack, encoders)
    wide = fuse(pack, *told[:2], loaded[3], clip(width=256), torch.ones(1, H, 256).tril(), tracks())
    with pytest.raises(ValueError, match="source_frames are 256x64, the clip is sampled at 64x64, another shape"):
        sample(loaded, *wide)


def test_what_the_model_is_told(pack, encoders):
    positive, negative, latent = conditioning(pack, encoders, fps=10)
    (embedding, told), (nothing, untold) = positive[0], negative[0]
    assert embedding.shape == (1, 1, CLIP_VISION["projection_dim"])
    numbers = {"fps": 11, "motion_bucket_id": 127, "augmentation_level": 0.02}
    assert numbers.items() <= told.items() and numbers.items() <= untold.items()
    assert nothing.abs().sum() == 0 and untold["concat_latent_image"].abs().sum() == 0
    assert told["concat_latent_image"].shape == (1, 4, H // 8, W // 8)
    assert latent["samples"].abs().sum() == 0


def test_the_numbers_are_those_of_the_released_scripts(comfy_session):
    """Core's embedding of what we tell it equals the vector that the released scripts give for the same options."""
    import comfy.model_base
    from safetensors.torch import load_file

    from magdiff_core.host.revideo_conditioning import FPS_OFFSET

    stored = load_file(revideo_files.FIXTURE.with_name("revideo_control.safetensors"))
    model = type("Embedder", (), {"embedder": comfy.model_base.Timestep(256)})
    numbers = {"fps": 6 + FPS_OFFSET, "motion_bucket_id": 127, "augmentation_level": 0.02}
    got = comfy.model_base.SVD_img2vid.encode_adm(model, **numbers)[0]
    torch.testing.assert_close(got, stored["D.vector_fps6_mb127_aug0.02"])


class Spy:
    """Stands for an image encoder and an autoencoder, and keeps what they are given."""

    def encode_image(self, image, crop):
        self.seen, self.crop = image, crop
        return type("Output", (), {"image_embeds": torch.ones(1, 16)})

    def encode(self, pixels):
        self.pixels = pixels
        return torch.ones(1, 4, pixels.shape[1] // 8, pixels.shape[2] // 8)


def test_the_picture_is_seen_whole_and_noise_is_measured_from_minus_one_to_one(pack):
    spy = Spy()
    frame = clip(1, 96, 48)
    conditioning(pack, (spy, spy), frame, width=192, height=64, augmentation_level=0.1)
    assert spy.crop is False
    assert spy.seen.shape == (1, 64, 192, 3), "stretched to the size of the clip first"
    noise = 2 * (spy.pixels - spy.seen)
    assert float(noise.std()) == pytest.approx(0.1, rel=0.05)
    again = Spy()
    conditioning(pack, (again, again), frame, width=192, height=64, augmentation_level=0.1)
    assert torch.equal(again.pixels, spy.pixels)
    other = Spy()
    conditioning(pack, (other, other), frame, width=192, height=64, augmentation_level=0.1, seed=24)
    assert not torch.equal(other.pixels, spy.pixels)
    conditioning(pack, (other, other), frame, width=192, height=64, augmentation_level=0.0)
    assert torch.equal(other.pixels, other.seen)


def test_a_frame_that_is_stretched_to_another_shape_is_said(pack, caplog):
    with caplog.at_level(logging.WARNING, "magdiff"):
        for resolution in ("1 MP (as released)", "0.16 MP (as trained)"):
            conditioning(pack, (Spy(), Spy()), clip(1, 640, 480), resolution=resolution)
        conditioning(pack, (Spy(), Spy()), clip(1, 96, 48), width=192, height=128)
        assert not caplog.text, "as near as multiples of 64 come"
        conditioning(pack, (Spy(), Spy()), clip(1, 96, 48), width=64, height=128)
    assert "edited_frame of 96x48 is stretched to 64x128" in caplog.text


def test_the_resolution_follows_the_shape_of_the_frame(pack):
    latent = conditioning(pack, (Spy(), Spy()), clip(1, 854, 480), resolution="1 MP (as released)", frames=2)[2]
    assert latent["samples"].shape == (2, 4, 768 // 8, 1344 // 8)
    latent = conditioning(pack, (Spy(), Spy()), clip(1, 512, 320), resolution="0.16 MP (as trained)", frames=2)[2]
    assert latent["samples"].shape == (2, 4, 320 // 8, 512 // 8)

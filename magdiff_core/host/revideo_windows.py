"""Edit a long clip with ReVideo, window by window: the frame in which a window starts comes from the windows before it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import comfy.model_management
import comfy.sample
import comfy.sd
import comfy.utils
import latent_preview
import torch
from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_video_model import VideoLinearCFGGuidance
from torch import Tensor
from torch.nn.functional import interpolate

from ..metrics.region import region_psnr
from ..motion.colour_match import SOURCE, match_colours
from ..motion.hints import EditRequest
from ..motion.resolution import BUDGETS, CUSTOM, MULTIPLE, same_but_for_rounding, working_size
from ..motion.tracks import touches
from ..motion.windows import HOLD, Window, join
from .control_apply import apply_control, make_request
from .control_file import LoadedControl
from .control_object import check_base
from .revideo_conditioning import image_conditioning
from .revideo_windows_identity import identity_of
from .revideo_windows_store import WindowStore

log = logging.getLogger("magdiff")

FORMAT = 1
"""Of the kept windows: another number makes those of older versions of this code unknown."""
SEEDS = 2**64


@dataclass(frozen=True, eq=False)
class Models:
    """What a clip is edited with: the four outputs of Load ReVideo."""

    model: ModelPatcher
    clip_vision: ClipVisionModel
    vae: comfy.sd.VAE
    control: LoadedControl


@dataclass(frozen=True)
class Settings:
    """How a clip is edited. Window `i` (from 0) uses `seed` + i, for the noise on its first frame and for that in the latent.

    Guidance grows from `min_cfg` in the first frame of a window to `cfg` in its last.
    """

    overlap_mode: str
    colour_match: str
    seed: int
    steps: int
    cfg: float
    min_cfg: float
    sampler_name: str
    scheduler: str
    strength: float
    start_percent: float
    end_percent: float
    fusion: str
    fps: int
    motion_bucket_id: int
    augmentation_level: float


@dataclass(frozen=True, eq=False)
class LongClip:
    """`frames` `[F, H, W, 3]`; `references` `[windows, H, W, 3]`, the frame in which each window started; `text`, a report."""

    frames: Tensor
    references: Tensor
    text: str


def check_clip(models: Models, source_frames: Tensor, edit_mask: Tensor, tracks: dict, map_mode: str, length: int) -> EditRequest:
    """The request for the whole clip; `length` is that of a window. Arguments as those of `make_request`.

    Raises ValueError, before anything is computed: what `make_request` raises, windows shorter than the clips that the control was
    trained on, and a MODEL that the control was not made for.
    """
    control = models.control
    check_base(models.model.model.diffusion_model, control.patcher.model)
    if length < control.clip_frames:
        raise ValueError(
            f"window_frames is {length}, this control was trained on clips of {control.clip_frames}: "
            f"give at least {control.clip_frames}"
        )
    # Windows have a length that the control knows, so the clip may have any that is not too short.
    control = replace(control, clip_frames=max(control.clip_frames, source_frames.shape[0]))
    return make_request(control, source_frames, edit_mask, tracks, map_mode)


def clip_size(request: EditRequest, edited_frame: Tensor, resolution: str, width: int, height: int) -> tuple[int, int]:
    """(width, height) at which the clip is sampled. `edited_frame`: `[1, H, W, 3]`; the rest as in `image_conditioning`.

    Raises ValueError when the shapes of the edited frame, the source and that size differ by more than rounding explains.
    """
    edited_height, edited_width = edited_frame.shape[1:3]
    source_height, source_width = request.source_frames.shape[1:3]
    if not same_but_for_rounding((edited_width, edited_height), (source_width, source_height)):
        raise ValueError(
            f"edited_frame is {edited_width}x{edited_height}, source_frames {source_width}x{source_height}, another shape: "
            "edit the first frame of source_frames itself, and keep its shape"
        )
    if resolution != CUSTOM:
        width, height = working_size(edited_width, edited_height, BUDGETS[resolution])
    if width % MULTIPLE or height % MULTIPLE:
        raise ValueError(f"width and height are {width}x{height}: give multiples of {MULTIPLE}")
    _part(request, slice(0, 1)).hints(width, height)
    return width, height


def edit_long_clip(
    models: Models,
    edited_frame: Tensor,
    request: EditRequest,
    size: tuple[int, int],
    windows: list[Window],
    settings: Settings,
) -> LongClip:
    """Sample all windows. `edited_frame` `[1, H, W, 3]` in 0 .. 1; `request` covers the whole clip; `size` is (width, height).

    A window that was finished before, from the same inputs, is taken from ComfyUI's folder for temporary files: after an interrupt
    or an error the clip goes on where it stopped. Files of a clip are removed when it is complete. Raises comfy's
    InterruptProcessingException after a press on Cancel.
    """
    width, height = size
    store = WindowStore()
    digests = _digests(models, edited_frame, request, size, windows, settings)
    store.make_room(digests)
    guided = VideoLinearCFGGuidance().patch(models.model, settings.min_cfg)[0]
    progress = _progress(len(windows), settings.steps)
    frames = torch.zeros(request.frames, height, width, 3)
    reference = _fitted(edited_frame, width, height)
    references, notes = [], []
    kept = True
    for window in windows:
        comfy.model_management.throw_exception_if_processing_interrupted()
        if window.index:
            reference = frames[window.start : window.start + 1].clone()
        references.append(reference)
        part = _part(request, window.frames)
        source, region = _source(part, size)
        # Behind a window that is made again nothing is taken up: what was made from it may differ in the last bits.
        made = store.load(digests[window.index]) if kept else None
        kept = made is not None
        progress(window.index, 0)
        if made is None:
            held = frames[window.common] if settings.overlap_mode == HOLD and window.shared > 1 else None
            callback = _callback(guided, window.index, progress)
            made = _make_window(models, guided, reference, held, part, window, settings, callback)
            if settings.colour_match == SOURCE:
                made = match_colours(made, source, region)
            if window is not windows[-1]:
                store.save(digests[window.index], made)
        join(frames, made, window, settings.overlap_mode)
        notes.append(_note(window, part, made, source, region, kept))
        log.info("ReVideo Long Video: %s", notes[-1])
    progress(len(windows), 0)
    store.remove(digests)
    count = "1 window" if len(windows) == 1 else f"{len(windows)} windows"
    head = f"{request.frames} frames of {width}x{height} in {count} of {windows[0].stop}"
    return LongClip(frames, torch.cat(references), "\n".join([head, *notes]))


def _part(request: EditRequest, frames: slice) -> EditRequest:
    """The request for some frames of the clip. It was checked as a whole: a part may have no region and no visible point."""
    edit_mask = request.edit_mask if len(request.edit_mask) == 1 else request.edit_mask[frames]
    return replace(
        request,
        source_frames=request.source_frames[frames],
        edit_mask=edit_mask,
        path=request.path[frames],
        visibility=request.visibility[frames],
    )


def _fitted(picture: Tensor, width: int, height: int) -> Tensor:
    """`[1, H, W, 3]` stretched to the size of the clip, as `image_conditioning` does it."""
    pixels = picture.movedim(-1, 1)
    if tuple(pixels.shape[-2:]) != (height, width):
        pixels = interpolate(pixels, (height, width), mode="bicubic", antialias=True, align_corners=False)
    return pixels.clamp(0.0, 1.0).movedim(1, -1)


def _source(part: EditRequest, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Source `[F, H, W, 3]` in 0 .. 1 (black in the region) and edit region `[F, H, W]`, as the control branch sees them."""
    hints = part.hints(*size)
    return ((hints.content + 1.0) / 2.0).movedim(1, -1), hints.edit_region[:, 0]


def _digests(
    models: Models,
    edited_frame: Tensor,
    request: EditRequest,
    size: tuple[int, int],
    windows: list[Window],
    settings: Settings,
) -> list[str]:
    """One digest a window, of all that its frames depend on: models, settings, and the inputs up to its last frame."""
    digest = identity_of(FORMAT, vars(models), vars(settings), edited_frame, size)
    digests = []
    for window in windows:
        digest = identity_of(digest, vars(window), vars(_part(request, window.frames)))
        digests.append(digest)
    return digests


def _make_window(
    models: Models,
    guided: ModelPatcher,
    reference: Tensor,
    held: Tensor | None,
    part: EditRequest,
    window: Window,
    settings: Settings,
    callback: Callable,
) -> Tensor:
    """Frames `[F, H, W, 3]` of one window: the chain of ReVideo Image Conditioning, SAFM Trajectory Fuse, sampler and decoder.

    `reference`: `[1, H, W, 3]`, the frame in which it starts. `held`: `[shared, H, W, 3]`, its first frames as they are to stay.
    """
    seed = (settings.seed + window.index) % SEEDS
    height, width = reference.shape[1:3]
    positive, negative, latent = image_conditioning(
        models.clip_vision,
        models.vae,
        reference,
        CUSTOM,
        width,
        height,
        part.frames,
        settings.fps,
        settings.motion_bucket_id,
        settings.augmentation_level,
        seed,
    )
    positive, negative = apply_control(
        positive,
        negative,
        models.control,
        part,
        settings.strength,
        settings.start_percent,
        settings.end_percent,
        settings.fusion,
    )
    noise_mask = None
    if held is not None:
        latent[: len(held)] = models.vae.encode(held).to(latent)
        noise_mask = torch.ones(part.frames, 1, *latent.shape[-2:])
        noise_mask[: len(held)] = 0.0
    samples = comfy.sample.sample(
        guided,
        comfy.sample.prepare_noise(latent, seed),
        settings.steps,
        settings.cfg,
        settings.sampler_name,
        settings.scheduler,
        positive,
        negative,
        latent,
        noise_mask=noise_mask,
        callback=callback,
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    comfy.model_management.throw_exception_if_processing_interrupted()
    return models.vae.decode(samples)


def _progress(windows: int, steps: int) -> Callable[..., None]:
    """A function (window, step, preview) that moves one bar over all windows."""
    bar = comfy.utils.ProgressBar(windows * steps)

    def progress(window: int, step: int, preview: tuple | None = None) -> None:
        bar.update_absolute(window * steps + step, preview=preview)

    return progress


def _callback(model: ModelPatcher, window: int, progress: Callable[..., None]) -> Callable:
    """For the sampler: a step of `window`, with a preview as the stock samplers show it."""
    previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)

    def callback(step: int, x0: Tensor, x: Tensor, total_steps: int) -> None:
        progress(window, step + 1, previewer.decode_latent_to_preview_image("JPEG", x0) if previewer else None)

    return callback


def _note(window: Window, part: EditRequest, made: Tensor, source: Tensor, region: Tensor, kept: bool) -> str:
    """What there is to know of a window, in words; frames count from 0."""
    text = f"window {window.index + 1}: frames {window.start} to {window.stop - 1}"
    if window.shared:
        text += f", starts from frame {window.start}"
    height, width = part.source_frames.shape[1:3]
    if region.min() < 0.5:
        psnr, _ = region_psnr(made, source, 1.0 - region)
        text += f", {psnr:.1f} dB outside of the region"
    if region.max() < 0.5:
        text += ", edit_mask is empty here: nothing is edited"
    if not touches(part.path, part.visibility, width, height).any():
        text += ", no point of tracks is visible here"
    return text + (", kept from before the interrupt" if kept else "")

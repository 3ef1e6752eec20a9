"""ReVideo at its published size: does it run, in what time and memory, and what does the control branch cost?

    python -m benchmarks.revideo_full [--only clip|step] [--files DIR] [--threads 1] [--steps 2] [--pairs 5]

A checkpoint of the published layout with random weights is written to DIR once (5.9 GB; 4.4 GB for `--only step`) and used again
by later runs; it is loaded through Load ReVideo.

clip: an edited frame, a region and a trajectory go through the nodes to KSampler, 14 frames of 512 x 320 pixels. One line with
the seconds of each part.
step: one sampling step of UNet and control branch over one of the UNet alone, at 16 x 16 latents, 14 frames, cond and uncond in one
batch, in turn. What a sampling run computes once (E_c, E_m) happens in the first, unmeasured step, as it does for users.
ComfyUI computes in float32 on a CPU. Measured for step: 11 GB of memory while it runs, and a peak of 16 GB resident while the whole
file is read, mapped pages of it included. Seconds are process CPU time.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.pack_nodes import call_node
from benchmarks.pairs import Stepper, batch_always, interleave, line, peak_mib
from benchmarks.revideo_layout import PUBLISHED, Size, sampled_shapes, whole_shapes, write_random
from magdiff_core.host import session

CLIP, STEP = "clip", "step"
WHOLE_FILE, SAMPLED_FILE = "revideo-random.safetensors", "revideo-random-sampled.safetensors"
FRAMES = 14
CFG = 4.0


def prepare(folder: Path, whole: bool, size: Size = PUBLISHED) -> Path:
    """The checkpoint in `folder`, written when it is not there; `whole`: with image encoder and autoencoder."""
    path = folder / WHOLE_FILE
    if not whole and not path.exists():
        path = folder / SAMPLED_FILE
    if not path.exists():
        print(f"writing {path}", flush=True)
        write_random(path, whole_shapes(size) if whole else sampled_shapes(size), size.metadata)
    return path


def load_pack(folder: Path) -> dict[str, type]:
    """The pack's nodes by id; files in `folder` can be named in them."""
    pack = session.load_pack()
    import folder_paths

    folder_paths.add_model_folder_path("magdiff", str(folder.resolve()), is_default=True)
    return pack


def fuse(pack: dict[str, type], control, positive: list, negative: list, width: int, height: int, frames: int) -> tuple[list, list]:
    """Conditionings with the control branch on them: a static rectangle in the middle, one point that moves to the right."""
    drawing = {
        "v": 1, "size": [width, height], "fps": 10, "frames": frames,
        "regions": [{"shape": "rectangle", "points": [{"u": 0.25, "v": 0.25}, {"u": 0.75, "v": 0.75}]}],
        "tracks": [{"points": [{"u": 0.4, "v": 0.5}, {"u": 0.6, "v": 0.5}]}],
    }  # fmt: skip
    source = torch.rand(1, height, width, 3).expand(frames, -1, -1, -1)
    tracks, edit_mask = call_node(pack, "MagDiffDrawTrajectories", trajectories=json.dumps(drawing), source_frames=source)[:2]
    return call_node(
        pack, "MagDiffSAFMTrajectoryFuse", positive=positive, negative=negative, control=control, source_frames=source,
        edit_mask=edit_mask, tracks=tracks,
    )  # fmt: skip


def measure_clip(pack: dict[str, type], loaded: tuple, width: int, height: int, frames: int, steps: int) -> dict[str, float]:
    """CPU seconds of the conditioning and of sampling. Raises ArithmeticError when what is sampled is not finite."""
    model, clip_vision, vae, control = loaded
    from comfy_extras.nodes_video_model import VideoLinearCFGGuidance
    from nodes import KSampler

    start = time.process_time()
    positive, negative, latent = call_node(
        pack, "MagDiffReVideoImageConditioning", clip_vision=clip_vision, vae=vae, edited_frame=torch.rand(1, height, width, 3),
        resolution="custom", width=width, height=height, frames=frames,
    )  # fmt: skip
    positive, negative = fuse(pack, control, positive, negative, width, height, frames)
    conditioned = time.process_time()
    (guided,) = VideoLinearCFGGuidance().patch(model, min_cfg=1.0)
    (sampled,) = KSampler().sample(guided, 0, steps, CFG, "euler", "karras", positive, negative, latent)
    if not torch.isfinite(sampled["samples"]).all():
        raise ArithmeticError("what was sampled is not finite")
    return {"conditioning_s": conditioned - start, "sampling_s": time.process_time() - conditioned}


def measure_step(
    pack: dict[str, type], model, control, side: int, frames: int, pairs: int, context: int = 1024
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """CPU seconds of steps of the UNet alone, and with the control branch."""
    batch_always(model.model)
    picture, nothing = torch.randn(1, 4, side, side), torch.zeros(1, 4, side, side)
    numbers = {"fps": 11, "motion_bucket_id": 127, "augmentation_level": 0.02}
    text = torch.randn(1, 1, context)
    prompts = (
        [[text, {**numbers, "concat_latent_image": picture}]],
        [[torch.zeros_like(text), {**numbers, "concat_latent_image": nothing}]],
    )
    noise = torch.randn(frames, 4, side, side)
    fused = fuse(pack, control, *prompts, 8 * side, 8 * side, frames)
    steppers = [Stepper(model, *prompts, noise), Stepper(model, *fused, noise)]
    return tuple(zip(*interleave([stepper.step for stepper in steppers], pairs), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=[CLIP, STEP], help="one of the two parts; both by default")
    parser.add_argument("--files", type=Path, default=Path(tempfile.gettempdir()) / "magdiff-benchmarks", help="folder of the file")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2, help="sampling steps of the clip")
    parser.add_argument("--width", type=int, default=512, help="of the clip, in pixels")
    parser.add_argument("--height", type=int, default=320, help="of the clip, in pixels")
    parser.add_argument("--latent", type=int, default=16, help="side of the square latents of the single steps")
    parser.add_argument("--pairs", type=int, default=5, help="measured pairs of single steps")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    path = prepare(options.files, whole=options.only != STEP)
    pack = load_pack(options.files)
    with torch.inference_mode():
        start = time.process_time()
        loaded = call_node(pack, "MagDiffLoadReVideo", checkpoint=path.name)
        seconds = {"loading_s": time.process_time() - start}
        if options.only != STEP:
            seconds |= measure_clip(pack, loaded, options.width, options.height, FRAMES, options.steps)
            parts = " ".join(f"{name}={value:.1f}" for name, value in seconds.items())
            case = f"revideo_{options.width}x{options.height}x{FRAMES}_{options.steps}_steps"
            print(f"seconds {sum(seconds.values()):.1f} case={case} threads={options.threads} {parts}", flush=True)
            print(f"peak_mib {peak_mib()} case={case}", flush=True)
        model, *_, control = loaded
        # Image encoder and autoencoder have done their work.
        del loaded
        if options.only != CLIP:
            plain, controlled = measure_step(pack, model, control, options.latent, FRAMES, options.pairs)
            case = f"revideo_{options.latent}x{options.latent}"
            print(line(case, options.threads, ("plain", plain), ("control", controlled)), flush=True)
            print(f"peak_mib {peak_mib()} case={case}", flush=True)


if __name__ == "__main__":
    main()

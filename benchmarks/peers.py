"""Published layers along time and image streams: what a step costs over the plain base, here and in `diffusers`, in one run.

    python -m benchmarks.peers [--only sd15|sd21] [--latent 16 32] [--frames 8] [--pairs 5] [--threads 1]

sd15: AnimateDiff v2 and IP-Adapter plus on SD1.5. Here every frame reads the tokens of all frames (16 F of them); `diffusers`
reads those of one picture, 16, which is what its pipelines are used with and the cheaper task. Both have the same weights.
sd21: DynamiCrafter-256, with its image stream and concatenated latent, on SD2.1; beside it `diffusers`' UNet3D (ModelScope), which
has neither. The spatial weights are the same.

Weights are random. Four steps are run in turn, on cond and uncond in one batch: plain base and ours by ComfyUI's
`calc_cond_batch`, plain base and theirs as their pipelines call them; each is compared with the plain base of its own library in
the same round. `below_peer`: in how many rounds ours costs less. Seconds are process CPU time.
"""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.pairs import SIGMA, Stepper, base_model, case_options, interleave, line, peak_mib, random_weights, ratios
from benchmarks.peers_layout import dynamicrafter, dynamicrafter_conditionings, ip_adapter_plus

# `benchmarks.pairs` has made ComfyUI's modules importable.
import comfy.supported_models  # isort: skip

from magdiff_core.alignment.apa import AlphaSettings
from magdiff_core.config import SAME_PICTURE, TOKENS_OF_CLIP
from magdiff_core.host.adapter_file import adapter_patcher
from magdiff_core.host.attach import apply_adapter
from magdiff_core.host.call import PartStrengths
from magdiff_core.host.conds import SubjectTokens, attach
from magdiff_core.weights.animatediff import read_animatediff
from magdiff_core.weights.ip_adapter import read_ip_adapter
from magdiff_core.weights.unet_names import UnetNames

SD15, SD21 = "sd15", "sd21"
TIMESTEP = 500
TEXT_TOKENS, PATCHES = 77, 257


@dataclass(frozen=True)
class Size:
    """Widths of the UNet's levels, of its text, of the image encoder and of the plus projection; heads of SD1.5, width of a head of
    SD2.1."""

    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    text_sd15: int = 768
    text_sd21: int = 1024
    image: int = 1280
    projection: int = 768
    heads_sd15: int = 8
    head_width_sd21: int = 64


def made(build: Callable[[], nn.Module]) -> nn.Module:
    """The module with random weights in place of those that its library would draw first."""
    with torch.device("meta"):
        module = build()
    module = module.to_empty(device="cpu").eval()
    random_weights(module)
    return module


def sharing(build: Callable[[], nn.Module], weights: dict[str, Tensor]) -> nn.Module:
    """The module with these very tensors."""
    with torch.device("meta"):
        module = build()
    module.load_state_dict(weights, assign=True)
    return module.requires_grad_(False).eval()


def comfy_base(family: type, spatial: nn.Module, size: Size, text: int, **facts: object):
    """ComfyUI's UNet with the tensors of diffusers' UNet2D."""
    weights = spatial.state_dict()
    names = UnetNames.of(weights)
    unet = {
        "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": size.widths[0], "num_res_blocks": [2, 2, 2, 2],
        "channel_mult": [width // size.widths[0] for width in size.widths], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_output": [1] * 9 + [0] * 3, "transformer_depth_middle": 1, "context_dim": text,
        "use_spatial_transformer": True, "legacy": False, "adm_in_channels": None, "use_temporal_attention": False, **facts,
    }  # fmt: skip
    return base_model(family, unet, {names.ldm(key): value for key, value in weights.items()})


@dataclass(frozen=True)
class Contest:
    """Two MODELs of ComfyUI with their conditionings, and two modules of diffusers that take frames `[2 F, 4, h, w]`."""

    name: str
    peer_name: str
    plain: object
    ours: object
    conditionings: Callable[[int], tuple[list, list]]
    peer_plain: Callable[[Tensor, Tensor], Tensor]
    peer: Callable[[Tensor, Tensor], Tensor]
    text_width: int
    frames: int

    def run(self, latent: int, pairs: int, threads: int) -> list[str]:
        """The two lines of one size."""
        noise = torch.randn(self.frames, 4, latent, latent)
        prompts = self.conditionings(latent)
        text = torch.randn(2, TEXT_TOKENS, self.text_width)
        rows = SIGMA * noise.repeat(2, 1, 1, 1)

        def timed(call: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], float]:
            def step() -> float:
                start = time.process_time()
                call(rows, text)
                return time.process_time() - start

            return step

        steps = [Stepper(model, *prompts, noise).step for model in (self.plain, self.ours)]
        steps += [timed(self.peer_plain), timed(self.peer)]
        plain, ours, peer_plain, peer = zip(*interleave(steps, pairs), strict=True)
        below = sum(x < y for x, y in zip(ratios(plain, ours), ratios(peer_plain, peer), strict=True))
        size = f"{latent}x{latent}"
        return [
            line(f"{self.name}_{size}", threads, ("plain", plain), ("magdiff", ours), below_peer=f"{below}/{pairs}"),
            line(f"{self.peer_name}_{size}", threads, ("plain", peer_plain), ("diffusers", peer)),
        ]


def per_frame(unet: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """diffusers' UNet2D on the frames of both clips, with the text of each."""
    return lambda rows, text: unet(rows, TIMESTEP, text.repeat_interleave(len(rows) // 2, 0)).sample


def as_clips(rows: Tensor) -> Tensor:
    """`[2 F, 4, h, w]` -> `[2, 4, F, h, w]`."""
    return rows.unflatten(0, (2, -1)).transpose(1, 2)


def animatediff_with_ip_adapter(size: Size, frames: int) -> Contest:
    from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel

    facts = {"cross_attention_dim": size.text_sd15, "attention_head_dim": size.heads_sd15}

    def build_spatial() -> nn.Module:
        return UNet2DConditionModel(sample_size=64, block_out_channels=size.widths, **facts)

    def build_motion() -> nn.Module:
        return MotionAdapter(block_out_channels=size.widths, use_motion_mid_block=True, motion_max_seq_length=32)

    spatial = made(build_spatial)
    motion = build_motion().eval()
    random_weights(motion)
    picture_weights = ip_adapter_plus(size.widths, size.text_sd15, size.image, size.projection)
    peer = sharing(
        lambda: UNetMotionModel.from_unet2d(build_spatial(), build_motion()), {**spatial.state_dict(), **motion.state_dict()}
    )
    parts = {name: {} for name in ("image_proj", "ip_adapter")}
    for key, value in picture_weights.items():
        name, _, rest = key.partition(".")
        parts[name][rest] = value
    peer._load_ip_adapter_weights([parts], low_cpu_mem_usage=False)
    picture = torch.randn(2, 1, PATCHES, size.image)

    def run_peer(rows: Tensor, text: Tensor) -> Tensor:
        # Its pipelines give each frame the text, and the picture to the clip.
        text = text.repeat_interleave(len(rows) // 2, 0)
        return peer(as_clips(rows), TIMESTEP, text, added_cond_kwargs={"image_embeds": [picture]}).sample

    along_time, stream = read_animatediff(motion.state_dict()), read_ip_adapter(picture_weights)
    config = dataclasses.replace(
        along_time.config, image_encoder=stream.config.image_encoder, projector_heads=stream.config.projector_heads,
        image_tokens=TOKENS_OF_CLIP, negative_picture=SAME_PICTURE,
    )  # fmt: skip
    base = comfy_base(
        comfy.supported_models.SD15, spatial, size, size.text_sd15, use_linear_in_transformer=False, num_heads=size.heads_sd15
    )
    loaded = adapter_patcher({**along_time.adapter, **stream.adapter}, config)

    def conditionings(latent: int) -> tuple[list, list]:
        tokens = SubjectTokens({"penultimate": torch.randn(1, frames, PATCHES, size.image)}, black_entry=False)
        texts = [[[torch.randn(1, TEXT_TOKENS, size.text_sd15), {}]] for _ in range(2)]
        return tuple(attach(text, tokens=tokens, alphas=AlphaSettings()) for text in texts)

    ours = apply_adapter(base, loaded, PartStrengths())
    names = "animatediff_ip_adapter", "diffusers_motion_ip_adapter"
    return Contest(*names, base, ours, conditionings, per_frame(spatial), run_peer, size.text_sd15, frames)


def dynamicrafter_beside_unet3d(size: Size, frames: int) -> Contest:
    from diffusers import UNet2DConditionModel, UNet3DConditionModel

    heads = [width // size.head_width_sd21 for width in size.widths]
    facts = {"block_out_channels": size.widths, "cross_attention_dim": size.text_sd21}
    peer = made(lambda: UNet3DConditionModel(sample_size=32, attention_head_dim=size.head_width_sd21, **facts))

    def build_spatial() -> nn.Module:
        return UNet2DConditionModel(sample_size=64, attention_head_dim=heads, use_linear_projection=True, **facts)

    with torch.device("meta"):
        names = build_spatial().state_dict().keys()
    spatial = sharing(build_spatial, {key: value for key, value in peer.state_dict().items() if key in names})
    base = comfy_base(
        comfy.supported_models.SD20, spatial, size, size.text_sd21, use_linear_in_transformer=True, num_heads=-1,
        num_head_channels=size.head_width_sd21,
    )  # fmt: skip
    loaded = dynamicrafter(base.model.diffusion_model, size.text_sd21, size.image, frames)
    ours = apply_adapter(base, loaded, PartStrengths())

    def conditionings(latent: int) -> tuple[list, list]:
        return dynamicrafter_conditionings(frames, latent, (TEXT_TOKENS, size.text_sd21), (PATCHES, size.image))

    def run_peer(rows: Tensor, text: Tensor) -> Tensor:
        return peer(as_clips(rows), TIMESTEP, text).sample

    names = "dynamicrafter", "diffusers_unet3d"
    return Contest(*names, base, ours, conditionings, per_frame(spatial), run_peer, size.text_sd21, frames)


CONTESTS = {SD15: animatediff_with_ip_adapter, SD21: dynamicrafter_beside_unet3d}


def main() -> None:
    parser = case_options(__doc__.splitlines()[0], "measured rounds a case")
    parser.add_argument("--only", choices=list(CONTESTS), help="one of the two bases; both by default")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    with torch.inference_mode():
        for name in [options.only] if options.only else CONTESTS:
            contest = CONTESTS[name](Size(), options.frames)
            for latent in options.latent:
                for words in contest.run(latent, options.pairs, options.threads):
                    print(words, flush=True)
            del contest
            gc.collect()
    print(f"peak_mib {peak_mib()}")


if __name__ == "__main__":
    main()

"""APA for Wan on relatives of Wan 2.1 image-to-video that have blocks, patches or a second picture of their own.

The other way to weigh a stream without a change of ComfyUI's code: values are linear, so a model whose `v` is scaled by alpha_text
and whose `v_img` is scaled by alpha_image, biases included, must give the same.
"""

from __future__ import annotations

import copy

import pytest
import torch

DIM, HEADS, BLOCKS, TEXT = 24, 2, 5, 20
ALPHAS = (0.4, 1.7)
SIZES = {"dim": DIM, "ffn_dim": 32, "num_heads": HEADS, "num_layers": BLOCKS, "text_dim": TEXT, "in_dim": 36}


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network(name: str):
    import comfy.ldm.wan.model as wan
    import comfy.ops
    from comfy.ldm.wan.model_animate import AnimateWanModel
    from comfy.ldm.wan.model_wandancer import WanDancerModel

    kinds = {
        "camera": (wan.CameraWanModel, {}),
        "animate": (AnimateWanModel, {}),
        "two pictures": (WanDancerModel, {"audio_inject_layers": [0], "music_dim": 8, "music_heads": 2, "music_latent_dim": 8}),
    }
    kind, more = kinds[name]
    made = kind(**SIZES, **more, operations=comfy.ops.manual_cast, dtype=torch.float32, device="cpu")
    for number, (key, parameter) in enumerate(made.named_parameters()):
        parameter.requires_grad_(False)
        if parameter.ndim > 1:
            parameter.copy_(random(*parameter.shape, seed=number) * parameter[0].numel() ** -0.5)
        else:
            parameter.copy_(0.1 * random(*parameter.shape, seed=number) + key.endswith("weight"))
    return made


def run(model: torch.nn.Module, alphas: tuple[float, float] | None, **more) -> torch.Tensor:
    from comfy.patcher_extension import WrappersMP

    from magdiff_core.alignment.apa import AlphaSettings
    from magdiff_core.host import wan

    options = {"sigmas": torch.ones(1)}
    if alphas is not None:
        options |= {wan.WAN_KEY: wan.WanSettings(AlphaSettings(*alphas), 0, BLOCKS - 1), wan.WEIGHTS: alphas}
        options["wrappers"] = {WrappersMP.DIFFUSION_MODEL: {wan.WAN_KEY: [wan.weigh_call]}}
    latents, text = random(1, 36, 2, 4, 4, seed=101), random(1, 7, TEXT, seed=102)
    return model(latents, torch.tensor([500.0]), text, clip_fea=random(1, 257, 1280, seed=103), transformer_options=options, **more)


@pytest.mark.parametrize("name", ["camera", "animate", "two pictures"])
def test_it_is_as_if_the_values_were_scaled(comfy_session, name):
    model = network(name)
    more = {"clip_fea_ref": random(1, 257, 1280, seed=104)} if name == "two pictures" else {}
    scaled = copy.deepcopy(model)
    for block in scaled.blocks:
        for layer, alpha in ((block.cross_attn.v, ALPHAS[0]), (block.cross_attn.v_img, ALPHAS[1])):
            layer.weight.mul_(alpha)
            layer.bias.mul_(alpha)
    out, expected, plain = run(model, ALPHAS, **more), run(scaled, None, **more), run(model, None, **more)
    largest = expected.abs().max()
    assert (out - expected).abs().max() < 1e-5 * largest
    assert (out - plain).abs().max() > 1e-3 * largest

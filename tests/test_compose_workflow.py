"""The workflow that composes an adapter out of VidRD and VideoCrafter1 and makes a clip with it, in a real server.

Changed against what is shipped, because this must run on two cores: small random files of the same layouts, 64 instead of 256
pixels, 2 frames instead of 8, 2 steps instead of 50.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import released
import sd21_files
import torch
import videocrafter_files
from comfy_server import server_with_models
from safetensors import safe_open
from workflow_checks import as_prompt, inputs_of, saved_clip

pytestmark = pytest.mark.server
FRAMES, SIZE = 2, 64
SMALLER = {
    "MagDiffHFAPyramidEncode": {"width": SIZE, "height": SIZE, "frames": FRAMES},
    "MagDiffSampler": {"steps": 2},
}
VIDRD, VIDEOCRAFTER = "ModelT2V.pth", "videocrafter1-i2v-512.ckpt"
TEXT_LAYERS, TEXT_WIDTH = 23, 1024


def text_encoder() -> dict[str, torch.Tensor]:
    """SD2.1's, as transformers names it; zeros that take no room after the first layer."""
    generator, width = torch.Generator().manual_seed(9), TEXT_WIDTH
    made = {
        "text_model.embeddings.token_embedding.weight": torch.randn(49408, width, generator=generator).half(),
        "text_model.embeddings.position_embedding.weight": torch.randn(77, width, generator=generator).half(),
        "text_model.final_layer_norm.weight": torch.ones(width).half(),
        "text_model.final_layer_norm.bias": torch.zeros(width).half(),
    }
    for number in range(TEXT_LAYERS):
        shapes = {f"{norm}.{x}": (width,) for norm in ("layer_norm1", "layer_norm2") for x in ("weight", "bias")}
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= {f"self_attn.{part}.weight": (width, width), f"self_attn.{part}.bias": (width,)}
        shapes |= {"mlp.fc1.weight": (4 * width, width), "mlp.fc1.bias": (4 * width,)}
        shapes |= {"mlp.fc2.weight": (width, 4 * width), "mlp.fc2.bias": (width,)}
        for name, shape in shapes.items():
            made[f"text_model.encoder.layers.{number}.{name}"] = torch.zeros(1).half().expand(shape)
    return made


def write(models: Path) -> None:
    import comfy.ops
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    sd21_files.make(models)
    with torch.device("meta"):
        unet = UNetModel(**sd21_files.UNET, operations=comfy.ops.disable_weight_init)
        vae = AutoencoderKL(embed_dim=4, ddconfig=sd21_files.VAE)
    generator = torch.Generator().manual_seed(5)
    vidrd = released.prefixed("unet.", released.unet_weights((320, 640), context=1024, image_stream=False))
    vidrd |= sd21_files._of_module(vae, "vae.", generator)
    vidrd = {name: weight.half() for name, weight in vidrd.items()} | released.prefixed("text_encoder.", text_encoder())
    shapes = {name: parameter.shape for name, parameter in unet.named_parameters()}
    videocrafter = videocrafter_files.image_to_video(shapes, sd21_files.IMAGE_WIDTH, seed=6)
    (models / "magdiff").mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": vidrd, "epoch": 1}, models / "magdiff" / VIDRD)
    torch.save({"state_dict": {name: weight.half() for name, weight in videocrafter.items()}}, models / "magdiff" / VIDEOCRAFTER)


@pytest.fixture(scope="module")
def server(comfy_session, tmp_path_factory):
    with server_with_models(tmp_path_factory.mktemp("compose-server") / "base", write, ["--fp32-text-enc"]) as running:
        yield running


def test_it_composes_once_and_is_vidrd_at_image_strength_0(server):
    prompt = as_prompt(server, "compose_vidrd")
    for class_type, values in SMALLER.items():
        inputs = inputs_of(prompt, class_type)
        assert values.keys() <= inputs.keys()
        inputs.update(values)

    def clip(**strengths):
        changed = copy.deepcopy(prompt)
        inputs_of(changed, "MagDiffApplyAdapter").update(strengths)
        entry = server.queue(changed)
        return saved_clip(server, changed, entry), entry

    whole, entry = clip()
    assert whole.shape == (FRAMES, SIZE, SIZE, 3) and whole.std() > 3
    name = inputs_of(prompt, "MagDiffComposeAdapter")["file_name"]
    text = next(output["text"] for output in entry["outputs"].values() if "text" in output)[0]
    assert text.startswith(name) and VIDRD in text and "research and non-commercial" in text
    written = server.base / "models" / "magdiff" / name
    with safe_open(written, "pt") as file:
        assert json.loads(file.metadata()["parts"]).keys() == {"temporal", "image", "subject"}

    without_image, _ = clip(image_strength=0.0)
    assert np.abs(without_image.astype(float) - whole).mean() > 0.2
    # VidRD as it is loaded, with nothing of ours wired
    plain = {key: copy.deepcopy(node) for key, node in prompt.items()}
    sampler = inputs_of(plain, "MagDiffSampler")
    sampler["model"] = inputs_of(plain, "MagDiffApplyAdapter")["model"]
    for side in ("positive", "negative"):
        sampler[side] = inputs_of(plain, "MagDiffHFAPyramidEncode")[side]
    gone = (
        "MagDiffComposeAdapter",
        "MagDiffApplyAdapter",
        "MagDiffEncodeSubjectTokens",
        "MagDiffAPAConditioning",
        "CLIPVisionLoader",
    )
    plain = {key: node for key, node in plain.items() if node["class_type"] not in gone}
    assert np.array_equal(saved_clip(server, plain, server.queue(plain)), without_image)

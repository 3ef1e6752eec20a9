"""The checkpoint file of the small model: UNet, autoencoder, text and image encoder, all of ComfyUI's own classes.

Keys: `model.diffusion_model.*` (LDM names), `first_stage_model.*` (AutoencoderKL), `cond_stage_model.magdiff.*`
(SDClipModel), `image_encoder.vision_model.*` (ClipVisionModel). Metadata: `format` "magdiff_checkpoint",
`format_version` "1", and `config`, a JSON object with what no key tells (see `MINI_CONFIG`).
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping

import comfy.clip_model
import comfy.clip_vision
import comfy.latent_formats
import comfy.model_base
import comfy.model_detection
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import comfy.utils
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor

from ..data.vocabulary import MAX_LENGTH, SPECIAL, WORDS, WordTokenizer
from .loaded_checkpoint import LoadedCheckpoint

FORMAT = "magdiff_checkpoint"
FORMAT_VERSION = "1"
UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
TEXT_PREFIX = "cond_stage_model."
IMAGE_PREFIX = "image_encoder."
TEXT_ENCODER_NAME = "magdiff"
CROSS_ATTENTION_GAIN = {"to_k": 3.0, "to_v": 8.0}
"""Factors on the fresh weights of these layers of cross-attention, see `initialise`."""

MINI_CONFIG = {
    "prediction": "v",
    "zero_terminal_snr": True,
    "latent_scale": 1.0,
    # Structure for fresh weights; a loaded file is read by ComfyUI's detection, which finds all but the head width.
    "unet": {"model_channels": 64, "channel_mult": [1, 2, 2], "num_res_blocks": [1, 1, 1], "transformer_depth": [0, 1, 0],
             "transformer_depth_middle": 1, "transformer_depth_output": [0, 1, 1, 1, 0, 0], "context_dim": 96,
             "num_head_channels": 32},
    "autoencoder": {
        "embed_dim": 8,
        "ddconfig": {"double_z": True, "z_channels": 8, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 32,
                     "ch_mult": [1, 1, 3], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0},
        "decoder_ddconfig": {"double_z": True, "z_channels": 8, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 32,
                             "ch_mult": [1, 1, 4], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0},
    },
    "text_encoder": {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 384,
                     "hidden_act": "gelu", "max_position_embeddings": MAX_LENGTH, "eos_token_id": SPECIAL.index("<end>"),
                     "words": list(WORDS)},
    "image_encoder": {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 384,
                      "hidden_act": "gelu", "image_size": 64, "patch_size": 8, "num_channels": 3, "projection_dim": 96,
                      "model_type": "clip_vision_model", "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]},
}  # fmt: skip


class OwnLatentFormat(comfy.latent_formats.LatentFormat):
    """As many channels as the file's autoencoder has, and the file's scale."""

    def __init__(self, channels: int, scale_factor: float) -> None:
        self.latent_channels = channels
        self.scale_factor = scale_factor


class OwnModelConfig(comfy.supported_models_base.BASE):
    """How ComfyUI builds the UNet. Not in its global list, so other files are never taken for ours."""

    unet_extra_config: dict = {}
    memory_usage_factor = 1.0

    def __init__(self, unet_config: dict, config: Mapping) -> None:
        super().__init__({**unet_config, "num_heads": -1, "num_head_channels": config["unet"]["num_head_channels"]})
        self.latent_format = OwnLatentFormat(config["autoencoder"]["embed_dim"], config["latent_scale"])
        self.sampling_settings = {"zsnr": config["zero_terminal_snr"]}
        self.prediction = config["prediction"]

    def inpaint_model(self):
        """No, whereas ComfyUI takes more than four channels for latent, mask and masked picture."""
        return False

    def model_type(self, state_dict, prefix=""):
        return comfy.model_base.ModelType.V_PREDICTION if self.prediction == "v" else comfy.model_base.ModelType.EPS


class OwnTextModel(comfy.clip_model.CLIPTextModel):
    """ComfyUI's CLIP text model with a vocabulary of the size that the file's word list has."""

    def __init__(self, config_dict, dtype, device, operations) -> None:
        super().__init__(config_dict, dtype, device, operations)
        words, width = len(config_dict["words"]), config_dict["hidden_size"]
        self.set_input_embeddings(operations.Embedding(words, width, dtype=dtype, device=device))


class OwnTextEncoder(comfy.sd1_clip.SDClipModel):
    def __init__(self, device="cpu", dtype=None, model_options=None, text_config: dict | None = None) -> None:
        special = {"start": SPECIAL.index("<start>"), "end": SPECIAL.index("<end>"), "pad": SPECIAL.index("<pad>")}
        super().__init__(
            device=device, dtype=dtype, model_options=model_options or {}, max_length=text_config["max_position_embeddings"],
            textmodel_json_config=dict(text_config), model_class=OwnTextModel, special_tokens=special,
        )  # fmt: skip


class OwnClipModel(comfy.sd1_clip.SD1ClipModel):
    def __init__(self, device="cpu", dtype=None, model_options=None, text_config: dict | None = None) -> None:
        super().__init__(
            device, dtype, model_options or {}, clip_model=OwnTextEncoder, name=TEXT_ENCODER_NAME, text_config=text_config
        )


def _tokenizer_factory(text_config: Mapping):
    def make(embedding_directory=None, tokenizer_data=None) -> comfy.sd1_clip.SD1Tokenizer:
        def inner(embedding_directory=None, tokenizer_data=None) -> comfy.sd1_clip.SDTokenizer:
            return comfy.sd1_clip.SDTokenizer(
                max_length=text_config["max_position_embeddings"], pad_with_end=False,
                embedding_directory=embedding_directory, embedding_size=text_config["hidden_size"],
                embedding_key=TEXT_ENCODER_NAME, tokenizer_class=WordTokenizer, tokenizer_data=tokenizer_data or {},
                tokenizer_args={"words": tuple(text_config["words"])},
            )  # fmt: skip

        return comfy.sd1_clip.SD1Tokenizer(embedding_directory, tokenizer_data or {}, tokenizer=inner, name=TEXT_ENCODER_NAME)

    return make


def _part(state_dict: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}


def _build_model(unet: dict[str, Tensor], config: Mapping, disable_dynamic: bool) -> comfy.model_patcher.ModelPatcher:
    management = comfy.model_management
    model_config = OwnModelConfig(comfy.model_detection.detect_unet_config(unet, ""), config)
    load_device = management.get_torch_device()
    parameters = comfy.utils.calculate_parameters(unet)
    dtype = management.unet_dtype(
        model_params=parameters, supported_dtypes=list(model_config.supported_inference_dtypes),
        weight_dtype=comfy.utils.weight_dtype(unet),
    )  # fmt: skip
    cast = management.unet_manual_cast(dtype, load_device, model_config.supported_inference_dtypes)
    model_config.set_inference_dtype(dtype, cast)
    model = model_config.get_model(unet, "", device=management.unet_inital_load_device(parameters, dtype))
    # Looked up at call time: ComfyUI rebinds it when memory is managed dynamically.
    kind = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher = kind(model, load_device=load_device, offload_device=management.unet_offload_device())
    model.load_model_weights(dict(unet), "", assign=patcher.is_dynamic())
    return patcher


def _build_vae(autoencoder: dict[str, Tensor], config: Mapping) -> comfy.sd.VAE:
    params = config["autoencoder"]
    vae = comfy.sd.VAE(sd=autoencoder, config={"params": copy.deepcopy(params)})
    # ComfyUI assumes three downsamplings for every AutoencoderKL that it is given with a config.
    vae.downscale_ratio = vae.upscale_ratio = 2 ** (len(params["ddconfig"]["ch_mult"]) - 1)
    vae.latent_channels = params["embed_dim"]
    return vae


def _build_clip(
    text: dict[str, Tensor], config: Mapping, embedding_directory: list[str] | None, disable_dynamic: bool
) -> comfy.sd.CLIP:
    target = comfy.supported_models_base.ClipTarget(_tokenizer_factory(config["text_encoder"]), OwnClipModel)
    target.params = {"text_config": config["text_encoder"]}
    return comfy.sd.CLIP(
        target, embedding_directory=embedding_directory, parameters=comfy.utils.calculate_parameters(text),
        state_dict=text, disable_dynamic=disable_dynamic,
    )  # fmt: skip


def _build_clip_vision(image: dict[str, Tensor], config: Mapping) -> comfy.clip_vision.ClipVisionModel:
    encoder = comfy.clip_vision.ClipVisionModel(dict(config["image_encoder"]))
    encoder.load_sd(image)
    return encoder


def assemble(
    state_dict: Mapping[str, Tensor],
    config: Mapping,
    embedding_directory: list[str] | None = None,
    disable_dynamic: bool = False,
) -> LoadedCheckpoint:
    """ComfyUI's objects around the weights of a whole file.

    Raises:
        ValueError: a tensor that the structure needs is missing, or one has no place; the keys are named.
    """
    parts = {prefix: _part(state_dict, prefix) for prefix in (UNET_PREFIX, VAE_PREFIX, TEXT_PREFIX, IMAGE_PREFIX)}
    for prefix, weights in parts.items():
        if not weights:
            raise ValueError(f"damaged MagDiff checkpoint: it holds no {prefix}* tensors")
    loaded = LoadedCheckpoint(
        model=_build_model(parts[UNET_PREFIX], config, disable_dynamic),
        clip=_build_clip(parts[TEXT_PREFIX], config, embedding_directory, disable_dynamic),
        vae=_build_vae(parts[VAE_PREFIX], config),
        clip_vision=_build_clip_vision(parts[IMAGE_PREFIX], config),
    )
    for prefix, module in modules_of(loaded).items():
        module.requires_grad_(False)
        expected, given = set(module.state_dict()), set(parts[prefix])
        if expected != given:
            missing, unexpected = sorted(expected - given), sorted(given - expected)
            raise ValueError(
                f"damaged MagDiff checkpoint: {prefix}* lacks {missing[:4]}, and {unexpected[:4]} have no place in it"
            )
    return loaded


def modules_of(loaded: LoadedCheckpoint) -> dict[str, torch.nn.Module]:
    """The live modules by key prefix: `prefix + name` of each of their tensors is the key in the file."""
    return {
        UNET_PREFIX: loaded.model.model.diffusion_model,
        VAE_PREFIX: loaded.vae.first_stage_model,
        TEXT_PREFIX: loaded.clip.cond_stage_model,
        IMAGE_PREFIX: loaded.clip_vision.model,
    }


def is_own_checkpoint(metadata: Mapping[str, str] | None) -> bool:
    """Whether safetensors metadata says that the file is one of ours."""
    return (metadata or {}).get("format") == FORMAT


def load_own_checkpoint(
    path: str | os.PathLike, embedding_directory: list[str] | None = None, disable_dynamic: bool = False
) -> LoadedCheckpoint:
    """Loads a file that `save_own_checkpoint` wrote; every part works with ComfyUI's stock nodes.

    Raises:
        ValueError: the file is not ours, of a newer version, or damaged.
    """
    path = os.fspath(path)
    try:
        state_dict, metadata = comfy.utils.load_torch_file(path, safe_load=True, return_metadata=True)
    except Exception as error:
        raise ValueError(f"cannot read {path}: it is damaged, cut short, or not a weights file ({error})") from error
    if not is_own_checkpoint(metadata):
        raise ValueError(f"{path} is no MagDiff checkpoint: its metadata has no format {FORMAT}")
    if metadata.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {metadata.get('format_version')}, this pack reads {FORMAT_VERSION}: update the pack"
        )
    loaded = assemble(state_dict, json.loads(metadata["config"]), embedding_directory, disable_dynamic)
    # For deep clones, another device among them, ComfyUI builds a part anew from disk.
    loaded.model.cached_patcher_init = (_reload_part, (path, embedding_directory, "model"))
    loaded.clip.patcher.cached_patcher_init = (_reload_part, (path, embedding_directory, "clip"))
    loaded.vae.patcher.cached_patcher_init = (_reload_part, (path, embedding_directory, "vae"))
    loaded.clip_vision.patcher.cached_patcher_init = (_reload_part, (path, embedding_directory, "clip_vision"))
    return loaded


def _reload_part(
    path: str, embedding_directory: list[str] | None, part: str, disable_dynamic: bool = False
) -> comfy.model_patcher.ModelPatcher:
    loaded = getattr(load_own_checkpoint(path, embedding_directory, disable_dynamic), part)
    return loaded if part == "model" else loaded.patcher


def save_own_checkpoint(
    path: str | os.PathLike, state_dict: Mapping[str, Tensor], config: Mapping, dtype: torch.dtype = torch.float16
) -> None:
    """Writes a whole checkpoint (keys with their prefixes) in `dtype`; ids and counters keep theirs."""
    tensors = {
        key: (value.detach().to("cpu", dtype) if value.is_floating_point() else value.detach().cpu()).contiguous()
        for key, value in state_dict.items()
    }
    metadata = {"format": FORMAT, "format_version": FORMAT_VERSION, "config": json.dumps(config)}
    comfy.utils.save_torch_file(tensors, os.fspath(path), metadata=metadata)


def initialise(module: torch.nn.Module) -> torch.nn.Module:
    """Draws the weights of a module built from ComfyUI's layers, which leave their memory as it is.

    torch's own rule for each kind of layer, from the global generator. The last layer of a ResBlock and of the UNet starts at
    zero, but nothing of a transformer, and keys and values of the prompt start larger: attention begins as an average over all
    tokens, so that a word is a small part of it. Measured: without both, prompts stay unused for more than 1000 steps.
    """
    for name, layer in module.named_modules():
        if isinstance(layer, torch.nn.modules.conv._ConvNd):
            torch.nn.modules.conv._ConvNd.reset_parameters(layer)
        elif isinstance(layer, torch.nn.Linear):
            torch.nn.Linear.reset_parameters(layer)
        elif isinstance(layer, torch.nn.Embedding):
            torch.nn.init.normal_(layer.weight, std=0.5 if name.endswith("token_embedding") else 0.1)
        elif isinstance(layer, torch.nn.GroupNorm | torch.nn.LayerNorm) and layer.weight is not None:
            torch.nn.init.ones_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
        if name.endswith((".conv2", "mid.attn_1.proj_out", ".out_layers.3", "out.2")):
            for parameter in layer.parameters():
                torch.nn.init.zeros_(parameter)
        gain = next((gain for ending, gain in CROSS_ATTENTION_GAIN.items() if name.endswith(f"attn2.{ending}")), 1.0)
        if gain != 1.0:
            with torch.no_grad():
                layer.weight.mul_(gain)
    return module


def build_autoencoder(config: Mapping) -> torch.nn.Module:
    """ComfyUI's AutoencoderKL with fresh weights, float32 on the CPU. `config`: the "autoencoder" entry."""
    return initialise(AutoencoderKL(**copy.deepcopy(dict(config)))).float()


def fresh_state_dict(config: Mapping = MINI_CONFIG) -> dict[str, Tensor]:
    """Weights of a whole untrained checkpoint, float32, from torch's global generator."""
    latent_channels = config["autoencoder"]["embed_dim"]
    unet = UNetModel(
        image_size=32, in_channels=latent_channels, out_channels=latent_channels, num_heads=-1, use_spatial_transformer=True,
        use_linear_in_transformer=True, dtype=torch.float32, operations=comfy.ops.manual_cast,
        **copy.deepcopy(config["unet"]),
    )  # fmt: skip
    image_encoder = comfy.clip_vision.ClipVisionModel(dict(config["image_encoder"])).model
    torch.nn.init.normal_(image_encoder.vision_model.embeddings.class_embedding, std=0.1)
    modules = {
        UNET_PREFIX: unet,
        VAE_PREFIX: build_autoencoder(config["autoencoder"]),
        TEXT_PREFIX: OwnClipModel(dtype=torch.float32, text_config=config["text_encoder"]),
        IMAGE_PREFIX: image_encoder,
    }
    return {
        prefix + name: value.detach().float()
        for prefix, module in modules.items()
        for name, value in initialise(module).state_dict().items()
    }

"""Attach an adapter to a MODEL: a clone with our patches, and nothing in the base touched.

The base's layers are never changed. The adapter is a model of its own with its own patcher, carried as an additional model, so
ComfyUI loads, offloads and frees it like any other.
"""

from __future__ import annotations

from uuid import uuid4

from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from comfy.model_patcher import ModelPatcher

from ..adapter import Temporal
from . import blocks
from .adapter_file import LoadedAdapter
from .call import PartStrengths
from .checks import check_base, check_other_handlers
from .names import PATCH_KEY, SETTINGS
from .neighbours import attention_key, replacement_before
from .schedule import install, uninstall
from .wrappers import WRAPPERS

_LIST_PATCHES = {
    "forward_timestep_embed_patch": (
        (ResBlock, blocks.run_res_block),
        (SpatialTransformer, blocks.run_spatial_transformer),
    ),
    "middle_patch": (blocks.keep_stream,),
    "attn2_patch": (blocks.one_prompt_row,),
    "attn2_output_patch": (blocks.add_temp_attn,),
    "input_block_patch": (blocks.add_subject_term, blocks.run_after_first_convolution),
    "emb_patch": (blocks.add_fps,),
}


def adapter_of(model: ModelPatcher) -> ModelPatcher | None:
    """The adapter's patcher on `model`, or None."""
    attached = model.get_additional_models_with_key(PATCH_KEY)
    return attached[0] if attached else None


def _detach(model: ModelPatcher) -> None:
    """Take our patches off `model` (a clone of our own), so that a second application replaces the first."""
    options = model.model_options["transformer_options"]
    for name, ours in _LIST_PATCHES.items():
        patches = options.get("patches", {})
        if name in patches:
            patches[name] = [patch for patch in patches[name] if patch not in ours]
            if not patches[name]:
                del patches[name]
    replaced = options.get("patches_replace", {}).get("attn2", {})
    for key, fn in list(replaced.items()):
        if type(fn) is blocks.WeighedCrossAttention:
            del replaced[key]
            if fn.previous is not None:
                replaced[key] = fn.previous
    for wrapper_type in WRAPPERS:
        model.remove_wrappers_with_key(wrapper_type, PATCH_KEY)
    uninstall(model)
    model.additional_models.pop(PATCH_KEY, None)
    options.pop(SETTINGS, None)


def _detach_base_differences(model: ModelPatcher, adapter_patcher: ModelPatcher) -> None:
    ours = {id(difference) for difference in adapter_patcher.attachments.get(PATCH_KEY, {}).values()}
    if not ours:
        return
    for key, patches in list(model.patches.items()):
        kept = [patch for patch in patches if not any(id(t) in ours for t in _patch_tensors(patch))]
        if kept:
            model.patches[key] = kept
        else:
            del model.patches[key]
    # Core tells by this number whether the weights in memory are those of this clone.
    model.patches_uuid = uuid4()


def _patch_tensors(patch: tuple) -> tuple:
    value = patch[1]
    return value if isinstance(value, tuple) else ()


def _replace_attention(model: ModelPatcher, site: str) -> None:
    replaced = model.model_options["transformer_options"].get("patches_replace", {}).get("attn2", {})
    previous = replacement_before(replaced, site)
    model.set_model_attn2_replace(blocks.WeighedCrossAttention(site, previous), *attention_key(site))


def _temporal_patches(temporal: Temporal) -> list[str]:
    names = ["forward_timestep_embed_patch"]
    if temporal.attn.sites:
        names += ["middle_patch", "attn2_output_patch"]
    if temporal.fps_embedding is not None:
        names.append("emb_patch")
    return names


def apply_adapter(model: ModelPatcher, loaded: LoadedAdapter, strengths: PartStrengths) -> ModelPatcher:
    """A clone of `model` with the adapter at these strengths; an adapter that was there before is replaced.

    Raises ValueError when the adapter does not fit the model or another pack holds the same layers.
    """
    model = model.clone()
    before = adapter_of(model)
    if before is not None:
        _detach_base_differences(model, before)
        _detach(model)
    adapter = loaded.patcher.model
    check_base(model, adapter)

    has_temporal = adapter.temporal is not None and strengths.temporal > 0.0
    has_image = adapter.apa is not None and strengths.image_stream > 0.0
    has_subject = adapter.hfa is not None and strengths.pyramid > 0.0
    if loaded.base_differences and strengths.base > 0.0:
        loaded.check_base_weights(model)
        patches = {f"diffusion_model.{key}": (w,) for key, w in loaded.base_differences.items()}
        model.add_patches(patches, strengths.base)

    # Kept even with every part off, so that nodes can read what the adapter wants of the image encoder.
    model.set_additional_models(PATCH_KEY, [loaded.patcher])
    model.model_options["transformer_options"][SETTINGS] = strengths
    if not (has_temporal or has_image or has_subject):
        return model
    if has_temporal:
        check_other_handlers(model.model_options["transformer_options"])
        install(model, adapter.config)
        for name in _temporal_patches(adapter.temporal):
            for patch in _LIST_PATCHES[name]:
                model.set_model_patch(patch, name)
    if has_image:
        model.set_model_attn2_patch(blocks.one_prompt_row)
        for site in adapter.apa.sites:
            _replace_attention(model, site)
    if has_subject:
        model.set_model_input_block_patch(blocks.add_subject_term)
    if has_temporal and adapter.temporal.layers_after(blocks.FIRST_CONVOLUTION):
        model.set_model_input_block_patch(blocks.run_after_first_convolution)
    for wrapper_type, wrapper in WRAPPERS.items():
        model.add_wrapper_with_key(wrapper_type, PATCH_KEY, wrapper)
    return model

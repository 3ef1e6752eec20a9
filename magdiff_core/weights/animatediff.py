"""Motion modules of AnimateDiff (v1, v2, v3) and AnimateLCM for SD1.5, in AnimateDiff's own layout and in diffusers'.

Which version it is, the file tells by a module in the middle (v2) and by the length of its position tables: 24 (v1), 32 (v2 and
v3), 64 or none at all (AnimateLCM). The position tables are a formula and are not kept.

The two layouts are run as their own code runs them, which is not the same: AnimateDiff takes the first norm of a motion module
over each frame, and in v1 the norms of the ResBlocks over the clip; diffusers the other way round in both.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from ..config import LINEAR, AdapterConfig, ScheduleConfig
from ..temporal.position import frame_positions
from .checkpoint import Family, ReadCheckpoint
from .temporal_names import join_qkv, required_in_transformer, transformer_name
from .unet_names import UnetNames

LEVELS = 4
"""Levels of SD1.5's UNet; the deepest one has no spatial transformers."""
HEADS = 8
TEXT_WIDTH = 768
LCM_POSITIONS = 64
POSITION_TOLERANCE = 5e-3
"""Largest difference of a stored position table to the formula: half precision keeps it within 5e-4."""

V1, V2, V3, LCM = "AnimateDiff v1", "AnimateDiff v2", "AnimateDiff v3", "AnimateLCM"
OWN, DIFFUSERS = "motion", "motion_over_clip"

_WRAPPED = "module."
_KEY = re.compile(
    r"(?:(?P<side>down|up)_blocks\.(?P<level>\d+)|mid_block)\.motion_modules\.(?P<index>\d+)\."
    r"(?P<own>temporal_transformer\.)?(?P<rest>.+)"
)
_POSITIONS = re.compile(r"transformer_blocks\.\d+\.(?:attention_blocks\.\d+\.pos_encoder|pos_embed)\.pe")
_OWN_NAMES = (
    ("attention_blocks.0.", "attn1."),
    ("attention_blocks.1.", "attn2."),
    ("norms.0.", "norm1."),
    ("norms.1.", "norm2."),
    ("ff_norm.", "norm3."),
)


@dataclass(frozen=True)
class MotionModules:
    """The motion part of a file. `adapter`: our keys. `positions`: length of the tables, 0 without. `unused`: other keys of the
    file that are weights of a whole UNet."""

    adapter: dict[str, Tensor]
    version: str
    own_layout: bool
    positions: int
    unused: tuple[str, ...]


def is_motion_part(keys: Iterable[str]) -> bool:
    """Whether a file with these keys holds motion modules: neither a LoRA of them nor a SparseCtrl ControlNet."""
    keys = [key.removeprefix(_WRAPPED) for key in keys]
    if any("lora" in key or key.startswith("controlnet_") for key in keys):
        return False
    return any(_KEY.fullmatch(key) for key in keys)


def is_animatediff(keys: Iterable[str]) -> bool:
    """Whether a file with these keys holds motion modules alone; with a first convolution `pia` reads it."""
    keys = list(keys)
    return is_motion_part(keys) and not any(key.removeprefix(_WRAPPED) == "conv_in.weight" for key in keys)


def read_motion_modules(state_dict: Mapping[str, Tensor], others: tuple[str, ...] = ()) -> MotionModules:
    """Take the motion modules out of a file; `others` are keys that the caller reads itself. Meta tensors work.

    Raises ValueError for modules of another base, with weights missing, keys without a place, or changed position tables.
    """
    weights = {key.removeprefix(_WRAPPED): value for key, value in state_dict.items()}
    found = {key: match for key in weights if (match := _KEY.fullmatch(key))}
    rest = [key for key in weights if key not in found and key not in others]
    names = UnetNames.of(rest)
    unused = tuple(key for key in rest if names.ldm(key) is not None)
    _check_places([key for key in rest if key not in unused], len(weights))
    levels = 1 + max((int(match["level"]) for match in found.values() if match["side"] == "down"), default=-1)
    layers = 1 + max((int(match["index"]) for match in found.values() if match["side"] == "down"), default=-1)
    _check_levels(levels, found)

    own_layout = any(match["own"] for match in found.values())
    kind = OWN if own_layout else DIFFUSERS
    adapter: dict[str, Tensor] = {}
    tables: dict[str, Tensor] = {}
    without_place = []
    for key, match in found.items():
        name = _inner_name(match["rest"])
        if _POSITIONS.fullmatch(match["rest"]):
            tables[key] = weights[key]
        elif name is None:
            without_place.append(key)
        else:
            adapter[f"temporal.{kind}.{_site(match, layers)}.{name}"] = weights[key]
    _check_places(without_place, len(weights))
    _check_complete(adapter, kind, layers, has_mid=any(key.startswith("mid_block.") for key in found))
    positions = _check_positions(tables)
    has_mid = any(f"temporal.{kind}.middle_block." in key for key in adapter)
    return MotionModules(join_qkv(adapter), _version(has_mid, positions), own_layout, positions, unused)


def motion_config(motion: MotionModules, **changes) -> AdapterConfig:
    """How these motion modules are run, each layout as its own code does."""
    facts = {
        "base": "an SD1.5 checkpoint",
        "text_width": TEXT_WIDTH,
        "frames": 16,
        "clip_norm": motion.own_layout and motion.version == V1,
        "temporal_heads": HEADS,
        "max_frames": motion.positions or LCM_POSITIONS,
        "schedule": ScheduleConfig(beta=LINEAR),
        "licence": "check the model card" if motion.version == LCM else "Apache-2.0",
        "trained_from": f"{motion.version} motion module",
    }
    return AdapterConfig(**{**facts, **changes})


def read_animatediff(state_dict: Mapping[str, Tensor]) -> ReadCheckpoint:
    """The motion modules as an adapter for SD1.5. Raises ValueError as `read_motion_modules`."""
    motion = read_motion_modules(state_dict)
    return ReadCheckpoint(
        layout=motion.version, unet={}, adapter=motion.adapter, config=motion_config(motion), unused=motion.unused
    )


def _inner_name(rest: str) -> str | None:
    for theirs, diffusers in _OWN_NAMES:
        rest = rest.replace(theirs, diffusers, 1)
    return transformer_name(rest)


def _site(match: re.Match, layers: int) -> str:
    if match["side"] is None:
        return "middle_block.1" if match["index"] == "0" else f"middle_block.1.{match['index']}"
    level, index = int(match["level"]), int(match["index"])
    if match["side"] == "down":
        return f"input_blocks.{(layers + 1) * level + index + 1}.{int(level < LEVELS - 1)}"
    return f"output_blocks.{(layers + 1) * level + index}.{int(level > 0)}"


def _sites(layers: int, has_mid: bool) -> list[str]:
    down = [
        f"input_blocks.{(layers + 1) * level + i + 1}.{int(level < LEVELS - 1)}" for level in range(LEVELS) for i in range(layers)
    ]
    up = [f"output_blocks.{(layers + 1) * level + i}.{int(level > 0)}" for level in range(LEVELS) for i in range(layers + 1)]
    return [*down, *(["middle_block.1"] if has_mid else []), *up]


def _check_places(without_place: list[str], total: int) -> None:
    if without_place:
        raise ValueError(
            f"this looks like AnimateDiff motion modules, but {len(without_place)} of its {total} tensors have no place there, "
            f"such as {without_place[0]}: it is of another version or mixed with another model. "
            "Use a motion module as it was published"
        )


def _check_levels(levels: int, found: Mapping[str, re.Match]) -> None:
    if levels == LEVELS:
        return
    if levels == LEVELS - 1:
        what = "motion modules of SDXL (3 levels), or a cut file"
    else:
        what = f"motion modules for {levels} levels of the UNet's way down: a part of a file"
    raise ValueError(
        f"this looks like {what}; those of SD1.5 have {LEVELS} levels ({len(found)} tensors found). "
        "Use mm_sd_v14, mm_sd_v15, mm_sd_v15_v2, v3_sd15_mm or AnimateLCM_sd15_t2v"
    )


def _check_complete(adapter: Mapping[str, Tensor], kind: str, layers: int, has_mid: bool) -> None:
    expected = [f"temporal.{kind}.{site}.{name}" for site in _sites(layers, has_mid) for name in required_in_transformer()]
    missing = [key for key in expected if key not in adapter]
    if missing:
        raise ValueError(
            f"this looks like AnimateDiff motion modules, but {len(missing)} of their {len(expected)} weights are missing, such as "
            f"{missing[0].removeprefix(f'temporal.{kind}.')} (LDM name of the layer before it): the file was cut. Fetch it again"
        )
    places = set(expected)
    _check_places([key for key in adapter if key not in places], len(adapter))


def _check_positions(tables: Mapping[str, Tensor]) -> int:
    for key, table in tables.items():
        if table.is_meta:
            continue
        formula = frame_positions(*table.shape[-2:])
        difference = (table.detach().float().cpu().reshape(formula.shape) - formula).abs().max().item()
        if not difference <= POSITION_TOLERANCE:
            raise ValueError(
                f"the position table {key} of this motion module differs by {difference:.3g} from the sinusoids that AnimateDiff "
                "uses: it was made for other code. Use a motion module as it was published"
            )
    return min((table.shape[-2] for table in tables.values()), default=0)


def _version(has_mid: bool, positions: int) -> str:
    if has_mid:
        return V2
    return {24: V1, 32: V3}.get(positions, LCM)


FAMILY_ANIMATEDIFF = Family("AnimateDiff", is_animatediff, read_animatediff)

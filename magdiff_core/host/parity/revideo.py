"""Parity of ReVideo: the control branch (`A.*`), a sampling run (`B.*`), trajectory maps (`C.*`) and schedules (`D.*`).

`C.constant.tracks_xy` is what a point tracker gave: an input under the name of a result, so never covered.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from . import revideo_branch, revideo_maps, revideo_run
from .fixture import Fixture

PARTS: dict[str, Callable[[Fixture], dict[str, Tensor]]] = {
    "A.sd.": revideo_branch.compute,
    "B.ctrl.": revideo_run.compute,
    "C.": revideo_maps.compute_maps,
    "D.": revideo_maps.compute_schedules,
}
"""What computes a part of a file, by how names of tensors begin when the file has the part."""


def recognises(fixture: Fixture) -> bool:
    """Whether this module does files like `fixture`."""
    return any(key.startswith(("A.sd.", "B.ctrl.")) for key in fixture.weights)


def compute(fixture: Fixture) -> dict[str, Tensor]:
    """Every tensor of the file that this pack can make, under its name."""
    computed: dict[str, Tensor] = {}
    for start, make in PARTS.items():
        if any(key.startswith(start) for key in (*fixture.weights, *fixture.stored)):
            computed.update(make(fixture))
    return computed

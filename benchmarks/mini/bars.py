"""What the small model must reach: the bars that decide the command's exit status, and those of the grown model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from .rows import AUTOENCODER, EDIT_ROW, GENERATE_ROW, REPLACE_ROW, SHUFFLED, Row, decibels

AT_LEAST, AT_MOST = "at least", "at most"
SHARE, DECIBELS, PLAIN, SECONDS, MEGABYTES = "%", "dB", "", "s", "MB"
KEPT_LOSS = 6.0
"""Decibels that the kept region of an edit may lose against the autoencoder alone."""
GROWN_KEPT_LOSS = 2.0
GROWN_CLIPS, GROWN_STEPS = 200, 25
"""On how many clips, of how many steps, the bars of the grown model are meant."""


@dataclass(frozen=True)
class Bar:
    """A value and its limit. A share is in 0..1."""

    name: str
    value: float
    sense: str
    limit: float
    unit: str = SHARE

    @property
    def holds(self) -> bool:
        """Never of a value that is not a number."""
        return self.value >= self.limit if self.sense == AT_LEAST else self.value <= self.limit

    def _shown(self, number: float) -> str:
        if self.unit == SHARE:
            return f"{100 * number:.0f} %"
        return f"{number:.3f}" if self.unit == PLAIN else f"{number:.1f} {self.unit}"

    def as_text(self) -> str:
        return (
            f"{'holds' if self.holds else 'FAILS':6} {self.name}: {self._shown(self.value)}, {self.sense} {self._shown(self.limit)}"
        )

    def as_json(self) -> dict:
        return asdict(self) | {"holds": self.holds}


def bars(rows: Mapping[str, Row]) -> list[Bar]:
    """What decides the exit status: prompt and picture have an effect, and an edit keeps what it should."""
    generated, edited = rows[GENERATE_ROW], rows[EDIT_ROW]
    loss = rows[AUTOENCODER].mean("kept_psnr") - edited.mean("kept_psnr")
    return [
        Bar("motion class", generated.mean("motion"), AT_LEAST, 0.55),
        Bar("background colour", generated.mean("background"), AT_LEAST, 0.80),
        Bar("nearest of 8 subjects", generated.mean("nearest"), AT_LEAST, 0.45),
        Bar("nearest of 8, shuffled subject", rows[SHUFFLED].mean("nearest"), AT_MOST, 0.25),
        Bar("dB lost in the kept region", loss, AT_MOST, KEPT_LOSS, DECIBELS),
    ]


def grown_bars(rows: Mapping[str, Row], megabytes: float) -> list[Bar]:
    """What the grown model is to reach. `megabytes`: size of both files together.

    Seconds are those of all cores together, so that a busy machine or several threads change little.
    """
    alone, generated, edited, replaced = (rows[name] for name in (AUTOENCODER, GENERATE_ROW, EDIT_ROW, REPLACE_ROW))
    result = [
        Bar("autoencoder, whole clips", decibels(alone.mean("clip_error")), AT_LEAST, 32.0, DECIBELS),
        Bar("autoencoder, inside subjects", decibels(alone.mean("inside_error")), AT_LEAST, 25.0, DECIBELS),
        Bar("generate, motion", generated.mean("motion"), AT_LEAST, 0.85),
        Bar("generate, background colour", generated.mean("background"), AT_LEAST, 0.95),
        Bar("generate, pattern", generated.mean("pattern"), AT_LEAST, 0.85),
        Bar("generate, all three", generated.mean("all_three"), AT_LEAST, 0.70),
        Bar("generate, subject RMSE", generated.mean("subject_rmse"), AT_MOST, 0.10, PLAIN),
        Bar("generate, nearest of 8 subjects", generated.mean("nearest"), AT_LEAST, 0.85),
        Bar("generate, flicker", generated.mean("flicker"), AT_MOST, 0.015, PLAIN),
    ]
    for name, row, kept in (("edit", edited, "kept_psnr"), ("replace subject", replaced, "ground_psnr")):
        loss = alone.mean(kept) - row.mean(kept)
        result += [
            Bar(f"{name}, motion", row.mean("motion"), AT_LEAST, 0.97),
            Bar(f"{name}, background colour", row.mean("background"), AT_LEAST, 0.97),
            Bar(f"{name}, pattern", row.mean("pattern"), AT_LEAST, 0.85),
            Bar(f"{name}, dB lost in the kept region", loss, AT_MOST, GROWN_KEPT_LOSS, DECIBELS),
        ]
    return [
        *result,
        Bar("replace subject, colour of the new one", replaced.mean("colour"), AT_LEAST, 0.85),
        Bar("both files", megabytes, AT_MOST, 25.0, MEGABYTES),
        Bar("one clip on one core", generated.mean("processor_seconds"), AT_MOST, 5.0, SECONDS),
    ]

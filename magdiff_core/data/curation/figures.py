"""Numbers of a curation: what was kept (the statistics of Fig. C in MagDiff's supplement) and what was dropped by which rule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figures:
    """Of the clips that are kept: words of the captions (without the added label), categories, lengths in seconds, labels."""

    caption_words: tuple[int, ...]
    seconds: tuple[float, ...]
    categories: Counter
    labels: Counter
    dropped: Counter
    """By (stage, rule)."""
    unfinished: int
    ready: int
    """Clips that stand in the folder for the trainer."""
    damaged: tuple[str, ...] = ()
    """A line for each shard that could not be opened, whose clips are not counted."""

    @property
    def kept(self) -> int:
        return len(self.seconds)

    def as_json(self) -> dict:
        return {
            "kept": self.kept,
            "ready": self.ready,
            "unfinished": self.unfinished,
            "damaged_shards": list(self.damaged),
            "dropped": [{"stage": stage, "rule": rule, "clips": count} for (stage, rule), count in self.dropped.most_common()],
            "categories": dict(self.categories.most_common()),
            "labels": dict(self.labels.most_common(200)),
            "caption_words": dict(sorted(Counter(self.caption_words).items())),
            "seconds": dict(sorted(Counter(int(length) for length in self.seconds).items())),
        }

    def as_text(self) -> str:
        """The table of what was dropped, in Markdown."""
        total = self.kept + self.unfinished + self.dropped.total()
        lines = ["# Curation", "", f"{total} clips: {self.kept} kept ({self.ready} of them in `clips.csv`), "]
        lines[-1] += f"{self.dropped.total()} dropped, {self.unfinished} not finished."
        lines += [line for damaged in self.damaged for line in ("", f"Shard {damaged}")]
        lines += ["", "| stage | rule | clips dropped |", "| --- | --- | --- |"]
        lines += [f"| {stage} | {rule} | {count} |" for (stage, rule), count in self.dropped.most_common()]
        lines += ["", "Most frequent labels: " + (", ".join(f"{word} {n}" for word, n in self.labels.most_common(30)) or "none")]
        return "\n".join(lines) + "\n"


def figures_of(
    kept: Sequence[dict], dropped: Sequence[dict], unfinished: int, ready: int, damaged: Sequence[str] = ()
) -> Figures:
    """From records, as the stages write them."""
    return Figures(
        caption_words=tuple(len(record["caption"].split()) for record in kept),
        seconds=tuple(record["seconds"] for record in kept),
        categories=Counter(record["category"] for record in kept),
        labels=Counter(record["label"] for record in kept),
        dropped=Counter((record["stage"], record["rule"]) for record in dropped),
        unfinished=unfinished,
        ready=ready,
        damaged=tuple(damaged),
    )

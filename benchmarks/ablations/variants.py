"""What is trained: the rows of Tables 5, 6 and 7 of the MagDiff paper."""

from __future__ import annotations

from dataclasses import dataclass

from magdiff_core.train.alignments import Alignments


@dataclass(frozen=True)
class Study:
    """Variants that are compared with `against`, one of them. `edits`: clips are edited too, not only generated."""

    title: str
    variants: dict[str, Alignments]
    against: str
    edits: bool


ALIGNMENTS = Study(
    "Table 5: alignments",
    {
        "without_sda_apa": Alignments(sda=False, apa=False),
        "without_sda_hfa": Alignments(sda=False, hfa=False),
        "without_sda": Alignments(sda=False),
        "without_apa": Alignments(apa=False),
        "without_hfa": Alignments(hfa=False),
        "all": Alignments(),
    },
    against="all",
    edits=True,
)
ALPHAS = Study(
    "Tables 6 and 7: weights of text and image",
    {
        "alphas_1_1": Alignments(alphas=(1.0, 1.0)),
        "alphas_0.3_0.7": Alignments(alphas=(0.3, 0.7)),
        "alphas_0.5_0.5": Alignments(alphas=(0.5, 0.5)),
        "alphas_0.7_0.3": Alignments(alphas=(0.7, 0.3)),
        "without_apa": Alignments(apa=False),
        "trained": Alignments(),
    },
    against="trained",
    edits=False,
)
STUDIES = {"alignments": ALIGNMENTS, "alphas": ALPHAS}

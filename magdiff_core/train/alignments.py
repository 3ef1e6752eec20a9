"""Which of the paper's alignments the small model is trained with: all of them, or fewer for the ablations of its section 4.3."""

from __future__ import annotations

from dataclasses import dataclass

SDA, APA, HFA = NAMES = ("sda", "apa", "hfa")


@dataclass(frozen=True)
class Alignments:
    """`sda`: the subject is cut out; without it the whole picture is the reference. `apa`: image tokens. `hfa`: subject latents.
    `alphas`: the (text, image) weights of every cross-attention, held at these values; None: learned.

    Raises:
        ValueError: neither image tokens nor subject latents, or alphas without image tokens to weigh.
    """

    sda: bool = True
    apa: bool = True
    hfa: bool = True
    alphas: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not self.apa and not self.hfa:
            raise ValueError(
                "apa and hfa are both left out: nothing would tell the model what the subject looks like. Leave out one of them"
            )
        if self.alphas is not None and not self.apa:
            raise ValueError(
                f"alphas are {self.alphas[0]:g} (text) and {self.alphas[1]:g} (image), but apa is left out: "
                "there are no image tokens to weigh. Give one of the two"
            )


ALL = Alignments()

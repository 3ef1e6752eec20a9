"""Procedural clips and the vocabulary: seeded, disjoint splits, exact masks, nothing that gives the answer away."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from magdiff_core.data import procedural
from magdiff_core.data.sprites import SHAPES, TEXTURES
from magdiff_core.data.vocabulary import ALIASES, MAX_LENGTH, WORDS, WordTokenizer


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pairs(first: torch.Tensor, second: torch.Tensor) -> set[tuple[int, int]]:
    return set(zip(first.tolist(), second.tolist()))


def test_same_seed_gives_the_same_clips_and_another_seed_others():
    first, second, other = (procedural.sample(4, generator(seed)) for seed in (3, 3, 4))
    for field in dataclasses.fields(first):
        assert torch.equal(getattr(first, field.name), getattr(second, field.name)), field.name
    assert torch.equal(procedural.render(first)[0], procedural.render(second)[0])
    assert not torch.equal(procedural.render(first)[0], procedural.render(other)[0])
    assert procedural.caption(first, generator(1)) == procedural.caption(second, generator(1))


def test_splits_share_no_pair_and_each_covers_every_shape_and_colour():
    train, test = (procedural.sample(20000, generator(5), split) for split in ("train", "test"))
    subjects = [pairs(spec.shape, spec.colour) for spec in (train, test)]
    backgrounds = [pairs(spec.background_colour, spec.pattern) for spec in (train, test)]
    assert not subjects[0] & subjects[1] and not backgrounds[0] & backgrounds[1]
    assert len(subjects[0] | subjects[1]) == len(SHAPES) * len(procedural.COLOURS)
    assert len(backgrounds[0] | backgrounds[1]) == len(procedural.COLOURS) * len(procedural.PATTERNS)
    for group in subjects + backgrounds:
        assert len({first for first, _ in group}) in (len(SHAPES), len(procedural.COLOURS))
    assert {shape for shape, _ in subjects[1]} == set(range(len(SHAPES)))
    with pytest.raises(ValueError, match="validation"):
        procedural.sample(1, generator(0), "validation")


def test_background_colour_is_never_a_subject_colour():
    for split in ("train", "test"):
        spec = procedural.sample(5000, generator(6), split)
        assert not (spec.background_colour == spec.colour).any()
        assert not (spec.background_colour == spec.second_colour).any()
        assert not (spec.colour == spec.second_colour).any()


def test_mask_splits_a_frame_exactly_into_subject_and_background():
    spec = procedural.sample(16, generator(7))
    frames, subject_mask = procedural.render(spec)
    assert frames.shape == (16, 8, 64, 64, 3) and subject_mask.shape == (16, 8, 64, 64)
    assert frames.min() >= 0 and frames.max() <= 1
    still = procedural.background(spec)[:, None].expand_as(frames)
    outside = subject_mask == 0
    assert torch.equal(frames[outside], still[outside])
    subject, _ = procedural.render_subject(spec)
    inside = subject_mask == 1
    assert torch.equal(frames[inside], subject[inside])
    area = subject_mask[:, 0].mean((1, 2))
    assert (area > 0.02).all() and (area < 0.6).all()


def test_mask_of_a_circle_has_the_area_and_place_of_that_circle():
    spec = procedural.sample(8, generator(8))
    spec = spec.replace(shape=torch.full((8,), SHAPES.index("circle")), motion=torch.full((8,), 4))
    _, subject_mask = procedural.render(spec, frames=1)
    area = subject_mask[:, 0].sum((1, 2))
    assert torch.allclose(area, torch.pi * spec.radius**2, rtol=0.02)
    weight = subject_mask[:, 0] / area[:, None, None]
    grid = torch.arange(64) + 0.5
    assert torch.allclose((weight.sum(1) * grid).sum(1), spec.centre[:, 0], atol=0.1)
    assert torch.allclose((weight.sum(2) * grid).sum(1), spec.centre[:, 1], atol=0.1)


def test_each_motion_moves_the_mask_as_its_name_says():
    expected = {"moves right": (1, 0, 0), "moves left": (-1, 0, 0), "moves up": (0, -1, 0), "moves down": (0, 1, 0),
                "stays still": (0, 0, 0), "grows": (0, 0, 1), "shrinks": (0, 0, -1)}  # fmt: skip
    spec = procedural.sample(70, generator(9))
    spec = spec.replace(motion=torch.arange(70) % 7)
    centre, size = procedural.trajectory(spec)
    _, subject_mask = procedural.render(spec)
    grid = torch.arange(64) + 0.5
    for row in range(70):
        x, y, grown = expected[procedural.MOTIONS[row % 7]]
        step = centre[row, 1] - centre[row, 0]
        assert step.sign().tolist() == [x, y]
        assert float((size[row, 7] - 1).sign()) == grown
        weight = subject_mask[row, :4] / subject_mask[row, :4].sum((1, 2), keepdim=True)
        drift = (weight.sum(1) * grid).sum(1)
        if x:
            assert float((drift[3] - drift[0]) * x) > 4


def test_start_pose_tells_nothing_about_the_motion():
    spec = procedural.sample(14000, generator(10))
    for motion in range(7):
        chosen = spec.centre[spec.motion == motion]
        assert torch.allclose(chosen.mean(0), torch.tensor([32.0, 32.0]), atol=0.4)
        assert torch.allclose(spec.radius[spec.motion == motion].mean(), torch.tensor(10.75), atol=0.15)


def test_textures_and_background_cells_are_coarse_enough_for_the_autoencoder():
    spec = procedural.sample(2000, generator(11))
    assert (spec.radius / spec.texture_cycles).min() >= 7.99
    spec = procedural.sample(64, generator(12)).replace(
        pattern=torch.full((64,), procedural.PATTERNS.index("barred")), shading=torch.zeros(64, 1, 4, 4)
    )
    row = procedural.background(spec)[:, 0, :, 0]
    changes = (row[:, 1:] != row[:, :-1]).nonzero()
    gaps = changes[1:, 1] - changes[:-1, 1]
    assert gaps[changes[1:, 0] == changes[:-1, 0]].min() >= 16


@pytest.mark.parametrize("pattern", range(len(procedural.PATTERNS)))
def test_patches_of_every_pattern_are_wider_than_a_latent_pixel(pattern):
    """Most of each tone lies in squares of 6 pixels that hold nothing else; a latent pixel has 4."""
    spec = procedural.sample(32, generator(12))
    spec = spec.replace(pattern=torch.full((32,), pattern), shading=torch.zeros(32, 1, 4, 4))
    picture = procedural.background(spec)
    low, high = picture.amin((1, 2), keepdim=True), picture.amax((1, 2), keepdim=True)
    tones = (picture - low).amax(-1) > 0.5 * (high - low).amax(-1)
    for tone in (tones, ~tones):
        # the picture goes on beyond its border
        wide = F.pad(tone.float()[:, None], (8, 8, 8, 8), mode="replicate")
        eroded = -F.max_pool2d(-wide, 6, 1)
        opened = F.max_pool2d(F.pad(eroded, (5, 5, 5, 5)), 6, 1)[:, 0, 8:-8, 8:-8] > 0
        # discs have no corners
        assert float((opened & tone).sum()) >= 0.8 * float(tone.sum())


def test_cross_pairs_keep_the_subject_and_change_background_and_motion():
    source, target = procedural.cross_pairs(64, generator(13))
    for name in ("shape", "texture", "colour", "second_colour", "centre", "radius", "rotation", "texture_phase", "blob"):
        assert torch.equal(getattr(source, name), getattr(target, name)), name
    assert not (source.background_colour == target.background_colour).any()
    assert not (source.motion == target.motion).any()
    assert not (target.background_colour == target.colour).any()
    first = [procedural.render_subject(spec, frames=1) for spec in (source, target)]
    assert torch.equal(first[0][0], first[1][0]) and torch.equal(first[0][1], first[1][1])
    held_out = procedural.held_out_background(target.background_colour, target.pattern)
    assert held_out.all() and procedural.held_out_subject(target.shape, target.colour).all()


def test_other_pose_changes_the_pose_only_and_keeps_the_subject_in_the_picture():
    spec = procedural.sample(200, generator(14))
    other = procedural.other_pose(spec, generator(15))
    changed = {f.name for f in dataclasses.fields(spec) if not torch.equal(getattr(spec, f.name), getattr(other, f.name))}
    assert changed == {"centre", "radius", "rotation"}
    assert procedural.render(other, frames=1)[1].sum((1, 2, 3)).min() > 30


def test_captions_name_what_is_drawn_and_never_the_second_colour():
    spec = procedural.sample(50, generator(16))
    for i, text in enumerate(procedural.caption(spec)):
        words = text.split()
        assert procedural.COLOURS[spec.colour[i]] in words and procedural.COLOURS[spec.background_colour[i]] in words
        assert SHAPES[spec.shape[i]] in words and TEXTURES[spec.texture[i]] in words
        assert procedural.MOTIONS[spec.motion[i]] in text
        assert procedural.COLOURS[spec.second_colour[i]] not in words


def test_every_caption_word_is_known_and_fits_the_length():
    tokenizer = WordTokenizer()
    unknown = WORDS.index("<unknown>")
    for text in procedural.caption(procedural.sample(500, generator(17)), generator(18)):
        ids = tokenizer(text)["input_ids"]
        assert unknown not in ids and len(ids) <= MAX_LENGTH
        assert tokenizer.decode(ids) == text


def test_tokenizer_folds_case_punctuation_and_synonyms_and_marks_unknown_words():
    tokenizer = WordTokenizer()
    ids = tokenizer.get_vocab()
    assert tokenizer("A GREY disc, rising!")["input_ids"] == [
        ids["<start>"], ids["a"], ids["gray"], ids["circle"], ids["up"], ids["<end>"]]  # fmt: skip
    assert tokenizer("zebra")["input_ids"] == [ids["<start>"], ids["<unknown>"], ids["<end>"]]
    assert tokenizer("")["input_ids"] == [ids["<start>"], ids["<end>"]]
    assert set(ALIASES.values()) <= set(WORDS) and not set(ALIASES) & set(WORDS)
    assert len(WORDS) == len(set(WORDS)) < 1000
    with pytest.raises(ValueError, match="starts with"):
        WordTokenizer(("a", "b"))

"""BLIP-2, SAM 2, Grounding DINO and spaCy in curation: tiny random models of the real classes against the models' own steps."""

from __future__ import annotations

import curation_models as made
import pytest
import torch

from magdiff_core.data.curation.blip2 import CAPTION, QUESTION, Blip2
from magdiff_core.data.curation.follow import Start, Tracker
from magdiff_core.data.curation.frames import stream_frames
from magdiff_core.data.curation.grounding import Grounding
from magdiff_core.data.curation.pretrained import Place
from magdiff_core.data.curation.sam2 import Sam2
from magdiff_core.data.curation.words import Words

HALF = Place(dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    return list(stream_frames(made.write_clip(tmp_path_factory.mktemp("clip") / "a.mkv", frames=12)))


@pytest.fixture(scope="module")
def blip2(tmp_path_factory):
    return made.save_blip2(tmp_path_factory.mktemp("models") / "blip2")


@pytest.fixture(scope="module")
def sam2(tmp_path_factory):
    return made.save_sam2(tmp_path_factory.mktemp("models") / "sam2")


@pytest.fixture(scope="module")
def grounding(tmp_path_factory):
    return made.save_grounding(tmp_path_factory.mktemp("models") / "grounding")


def written_word_by_word(model, picture, prompt, most):
    """Greedy: the likeliest next token after the picture and the prompt, again and again, by the model's plain forward."""
    inputs = model.processor(images=picture.numpy(), text=prompt, return_tensors="pt")
    tokens, tokenizer = inputs["input_ids"], model.processor.tokenizer
    given = tokens.shape[1]
    while tokens.shape[1] < given + most:
        logits = model.network(pixel_values=inputs["pixel_values"], input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
        tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], 1)
        if int(tokens[0, -1]) == tokenizer.eos_token_id:
            break
    return tokenizer.decode(tokens[0, given:], skip_special_tokens=True)


def test_blip2_writes_what_its_own_forward_says_for_each_picture_of_a_batch(blip2, frames):
    model = Blip2(blip2, Place())
    pictures = [frames[0], 255 - frames[3][:40], torch.zeros(30, 50, 3, dtype=torch.uint8)]
    for prompt in (QUESTION, CAPTION):
        words = model.complete(pictures, prompt, most_words=6)
        assert words == [written_word_by_word(model, picture, prompt, 6) for picture in pictures]
        assert all(words) and prompt not in " ".join(words)
    assert model.answers(pictures) != model.captions(pictures)
    assert len(Blip2(blip2, HALF).answers(pictures[:1])) == 1


def test_sam2_frame_by_frame_equals_the_whole_clip_at_once(sam2, frames):
    """The memory that is let go of must be out of the model's reach."""
    model = Sam2(sam2, Place())
    boxes = ((8.0, 14.0, 28.0, 34.0), (30.0, 4.0, 50.0, 20.0))
    found = list(model.masks(iter(frames), Start(boxes=boxes)))

    with torch.inference_mode():
        session = model.processor.init_video_session(video=[frame.numpy() for frame in frames])
        model.processor.add_inputs_to_inference_session(
            session, frame_idx=0, obj_ids=[1, 2], input_boxes=[[list(box) for box in boxes]], original_size=(48, 64)
        )
        for number, out in enumerate(model.network.propagate_in_video_iterator(session, start_frame_idx=0)):
            (logits,) = model.processor.post_process_masks([out.pred_masks], original_sizes=[(48, 64)], binarize=False)
            expected = (logits > 0).any(0).any(0)
            assert found[number].dtype == torch.bool and torch.equal(found[number], expected), number
    assert number == 11 and any(mask.any() for mask in found)


def test_sam2_keeps_a_given_mask_and_forgets_old_frames(sam2, frames, monkeypatch):
    model = Sam2(sam2, HALF)
    sessions = []
    start = model.processor.init_video_session
    monkeypatch.setattr(model.processor, "init_video_session", lambda **words: sessions.append(start(**words)) or sessions[-1])
    found = list(model.masks(iter(frames * 2), Start(made.square(0))))
    assert len(found) == 24 and torch.equal(found[0], made.square(0)) and found[1].shape == (48, 64)
    assert not sessions[0].processed_frames
    kept = sessions[0].output_dict_per_obj[0]["non_cond_frame_outputs"]
    assert max(kept) == 23 and len(kept) <= 6


def test_grounding_gives_boxes_inside_the_picture_the_surest_first(grounding, frames):
    model = Grounding(grounding, Place(), least_score=0.0)
    boxes = model.boxes(frames[0], "Dog")
    inputs = model.processor(images=frames[0].numpy(), text="dog.", return_tensors="pt")
    with torch.inference_mode():
        out = model.network(**inputs)
    best = int(out.logits[0].sigmoid().amax(-1).argmax())
    x, y, width, height = (out.pred_boxes[0, best] * torch.tensor([64, 48, 64, 48])).tolist()
    expected = (max(0, x - width / 2), max(0, y - height / 2), min(64, x + width / 2), min(48, y + height / 2))
    assert boxes[0] == pytest.approx(expected, abs=1e-3) and 1 <= len(boxes) <= 8
    assert Grounding(grounding, Place(), least_score=1.0).boxes(frames[0], "dog") == ()


def test_own_tracker_follows_over_its_chunks(frames):
    pytest.importorskip("cv2")
    for start in (Start(made.square(0)), Start(boxes=((7, 13, 29, 35),))):
        found = list(Tracker(chunk=4).masks(iter(frames), start))
        assert len(found) == 12
        for number in (0, 4, 5, 11):
            exact = made.square(number)
            assert (found[number] & exact).sum() > 0.8 * (found[number] | exact).sum(), number
    empty = list(Tracker(chunk=4).masks(iter(frames), Start(torch.zeros(48, 64, dtype=torch.bool))))
    assert len(empty) == 12 and not any(mask.any() for mask in empty)
    assert list(Tracker().masks(iter(()), Start(made.square(0)))) == []


def test_words_finds_nouns_and_compares_by_vectors(tmp_path):
    words = Words(made.save_spacy(tmp_path / "spacy"))
    assert words.nouns("A Dog runs on grass, the dog and a Car") == ["dog", "grass", "car"]
    assert words.nouns("runs") == []
    assert words.similarity("dog", "dog") == pytest.approx(1)
    assert words.similarity("dog", "cat") == pytest.approx(0.5 / 0.89**0.5)
    assert words.similarity("dog", "car") == 0 and words.similarity("dog", "qzx") == 0
    # of several words the mean vector, also of the unknown ones, which are zero
    assert words.similarity("dog cat", "cat") == pytest.approx((0.75 * 0.5 + 0.4 * 0.8) / (0.85 * 0.89**0.5))
    assert words.known("dog") and not words.known("qzx") and not words.known("")


def test_models_that_will_not_do_are_refused_in_words(tmp_path, blip2):
    with pytest.raises(FileNotFoundError, match="no config.cfg"):
        Words(tmp_path)
    with pytest.raises(ValueError, match="no word vectors"):
        Words(made.save_spacy(tmp_path / "small", vectors=False))
    with pytest.raises(ValueError, match="parts of speech"):
        Words(made.save_spacy(tmp_path / "blank", tags=False))
    with pytest.raises(FileNotFoundError, match="no config.json"):
        Blip2(tmp_path, Place())
    with pytest.raises(ValueError, match="is no Sam2VideoModel"):
        Sam2(blip2, Place())


def test_missing_libraries_are_named(monkeypatch, tmp_path):
    for name, call in (("spacy", lambda: Words(tmp_path)), ("transformers", lambda: Blip2(tmp_path, Place()))):
        monkeypatch.setitem(__import__("sys").modules, name, None)
        with pytest.raises(ImportError, match="pip install"):
            call()

"""Segment Anything from a file: a tiny model of the real classes, saved as .pth and .safetensors."""

from __future__ import annotations

import os
import pickle
from functools import partial

import numpy as np
import pytest
import torch

modeling = pytest.importorskip("segment_anything.modeling")

from safetensors.torch import save_file  # noqa: E402

from magdiff_core.segment.prompts import Prompt  # noqa: E402
from magdiff_core.segment.sam import SamSegmenter, build_sam, detect_sizes, read_state_dict  # noqa: E402


def tiny_sam(side: int = 64) -> torch.nn.Module:
    """The real classes with small sizes: 4 blocks of width 32, two of them global."""
    torch.manual_seed(4)
    return modeling.Sam(
        image_encoder=modeling.ImageEncoderViT(
            depth=4,
            embed_dim=32,
            img_size=side,
            mlp_ratio=4,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            num_heads=4,
            patch_size=8,
            qkv_bias=True,
            use_rel_pos=True,
            global_attn_indexes=(1, 3),
            window_size=5,
            out_chans=16,
        ),
        prompt_encoder=modeling.PromptEncoder(
            embed_dim=16,
            image_embedding_size=(side // 8, side // 8),
            input_image_size=(side, side),
            mask_in_chans=8,
        ),
        mask_decoder=modeling.MaskDecoder(
            num_multimask_outputs=3,
            transformer=modeling.TwoWayTransformer(depth=2, embedding_dim=16, mlp_dim=24, num_heads=8),
            transformer_dim=16,
            iou_head_depth=3,
            iou_head_hidden_dim=20,
        ),
    ).eval()


@pytest.fixture(scope="module")
def model():
    return tiny_sam()


@pytest.fixture(params=["pth", "safetensors"])
def file(request, model, tmp_path):
    path = tmp_path / f"tiny.{request.param}"
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    (save_file if request.param == "safetensors" else torch.save)(state, path)
    return path


def test_sizes_are_read_off_the_tensors(model):
    sizes = detect_sizes(model.state_dict(), "tiny")
    assert (sizes.width, sizes.depth, sizes.heads, sizes.global_blocks, sizes.window) == (32, 4, 4, (1, 3), 5)
    assert (sizes.image_side, sizes.patch, sizes.prompt_width, sizes.mask_channels) == (64, 8, 16, 8)
    assert (sizes.decoder_depth, sizes.decoder_hidden, sizes.iou_depth, sizes.iou_hidden) == (2, 24, 3, 20)


@pytest.mark.parametrize(
    ("variant", "heads", "blocks"),
    [("vit_b", 12, (2, 5, 8, 11)), ("vit_l", 16, (5, 11, 17, 23)), ("vit_h", 16, (7, 15, 23, 31))],
)
def test_published_variants_are_recognised(variant, heads, blocks):
    from segment_anything import sam_model_registry

    with torch.device("meta"):
        registry = sam_model_registry[variant]()
    sizes = detect_sizes(registry.state_dict(), variant)
    assert (sizes.variant, sizes.heads, sizes.global_blocks) == (variant, heads, blocks)
    assert (sizes.window, sizes.image_side, sizes.patch) == (14, 1024, 16)


def test_the_built_model_computes_what_the_original_computes(model, file):
    built = build_sam(read_state_dict(file), file.name)
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(built.image_encoder(picture), model.image_encoder(picture), rtol=0, atol=0)
    assert not built.training
    assert torch.equal(built.pixel_mean, model.pixel_mean)


def test_boxes_points_and_expected_masks_give_masks_of_the_picture(model):
    from segment_anything import SamPredictor

    picture = np.random.default_rng(0).integers(0, 255, (40, 56, 3), np.uint8)
    segmenter, predictor = SamSegmenter(model), SamPredictor(model)
    predictor.set_image(picture)
    masks, _, _ = predictor.predict(
        np.array([[20.0, 10.0], [5.0, 5.0]]), np.array([1, 0]), np.array([8.0, 6.0, 40.0, 30.0]), multimask_output=False
    )
    prompt = Prompt(positive=((20, 10),), negative=((5, 5),), boxes=((8, 6, 40, 30),))
    np.testing.assert_array_equal(segmenter.segment(picture, prompt), masks[0])
    expected = np.zeros((40, 56), bool)
    expected[10:30, 12:40] = True
    refined = segmenter.refine(picture, expected)
    assert refined.shape == (40, 56)
    assert refined.dtype == bool


def test_a_lone_point_takes_the_candidate_of_the_best_score(model):
    from segment_anything import SamPredictor

    picture = np.random.default_rng(2).integers(0, 255, (64, 48, 3), np.uint8)
    predictor = SamPredictor(model)
    predictor.set_image(picture)
    masks, scores, _ = predictor.predict(np.array([[20.0, 30.0]]), np.array([1]), multimask_output=True)
    got = SamSegmenter(model).segment(picture, Prompt(positive=((20, 30),)))
    np.testing.assert_array_equal(got, masks[scores.argmax()])


def test_pickled_code_is_refused_and_not_run(tmp_path):
    marker = tmp_path / "was-run"

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    path = tmp_path / "bomb.pth"
    torch.save({"image_encoder.pos_embed": Bomb()}, path)
    with pytest.raises(ValueError, match=r"bomb\.pth.*never run"):
        read_state_dict(path)
    with open(path, "wb") as stream:
        pickle.dump(Bomb(), stream, protocol=2)
    with pytest.raises(ValueError, match=r"bomb\.pth"):
        read_state_dict(path)
    assert not marker.exists()


def test_truncated_files_are_named(file):
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=file.name):
        read_state_dict(file)


def test_a_file_without_state_dict_is_named(tmp_path):
    path = tmp_path / "list.pth"
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match=r"list\.pth is no state dict"):
        read_state_dict(path)


@pytest.mark.parametrize(
    ("key", "family"),
    [
        ("mask_decoder.hf_token.weight", "HQ-SAM"),
        ("memory_encoder.fuser.layers.0.gamma", "SAM2 or SAM3"),
        ("image_encoder.layers.0.blocks.0.conv1.c.weight", "MobileSAM"),
    ],
)
def test_other_families_are_named(model, key, family):
    with pytest.raises(ValueError, match=family):
        detect_sizes({**model.state_dict(), key: torch.zeros(1)}, "file")


def test_foreign_and_incomplete_files_are_refused(model):
    with pytest.raises(ValueError, match="no Segment Anything file"):
        build_sam({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(1)}, "sd15.safetensors")
    state = dict(model.state_dict())
    del state["mask_decoder.iou_token.weight"]
    with pytest.raises(ValueError, match=r"iou_token"):
        build_sam(state, "half.pth")
    with pytest.raises(ValueError, match="extra"):
        build_sam({**model.state_dict(), "extra": torch.zeros(1)}, "more.pth")


def test_the_node_runs_a_file_of_models_sams(pack, model, file, monkeypatch):
    import comfy.model_management
    import folder_paths

    folders, extensions = folder_paths.folder_names_and_paths["sams"]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "sams", ([str(file.parent)], extensions))
    monkeypatch.setattr(folder_paths, "models_dir", str(file.parent / "nowhere"))
    folder_paths.filename_list_cache.pop("sams", None)
    node = pack["MagDiffSubjectSegment"]
    options = {entry.id: entry for entry in node.GET_SCHEMA().inputs}["sam_model"].options
    assert options == ["none", file.name]
    loads = []
    original = comfy.model_management.load_models_gpu
    monkeypatch.setattr(comfy.model_management, "load_models_gpu", lambda *a, **k: (loads.append(a[0]), original(*a, **k)))
    images = torch.rand(2, 40, 56, 3, generator=torch.Generator().manual_seed(0))
    given = {
        "method": "SAM",
        "sam_model": file.name,
        "box_x": 8,
        "box_y": 6,
        "box_width": 32,
        "box_height": 24,
        "positive_points": "",
        "negative_points": "",
        "track": True,
        "grow": 0,
        "feather": 0,
        "fill_holes": False,
        "whole_frame_if_none": True,
        "correction_frames": "",
    }
    first = node.execute(images, **given).args
    second = node.execute(images, **given).args
    assert torch.equal(first[1], second[1])
    expected = SamSegmenter(model).segment((images[0] * 255).round().byte().numpy(), Prompt(boxes=((8, 6, 40, 30),)))
    assert 0 < expected.mean() <= 0.95, "choose another box: the whole-frame rule would hide the mask"
    assert torch.equal(first[1][0], torch.from_numpy(expected).float())
    assert [len(models) for models in loads] == [1, 1]
    assert loads[0][0] is loads[1][0], "the file was read once"
    assert loads[0][0] in [entry.model for entry in comfy.model_management.current_loaded_models]
    comfy.model_management.unload_all_models()
    assert torch.equal(node.execute(images, **given).args[1], first[1])


def test_sam_without_a_file_says_where_to_put_one(pack):
    from test_segment_node import run

    with pytest.raises(ValueError, match=r"models/sams.*GrabCut"):
        run(pack, torch.rand(1, 32, 32, 3), method="SAM", sam_model="none")

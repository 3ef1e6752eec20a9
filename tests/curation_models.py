"""Tiny random models of the classes that curation uses, saved as folders, and made-up videos."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy
import torch

VOCABULARY = (
    "question : what is the foreground in picture ? answer a photo of dog cat car man runs on grass red small . , and big tree "
    "moon walks sits house bird sky river blue"
).split()
NOUNS = ("dog", "cat", "car", "man", "grass", "tree", "moon", "house", "bird", "picture", "poodle", "view")
VECTORS = {"dog": (1, 0, 0), "poodle": (0.9, 0.1, 0), "cat": (0.5, 0.8, 0), "animal": (0.8, 0.5, 0), "car": (0, 0, 1),
           "man": (0, 1, 0.2), "person": (0, 1, 0), "grass": (0.1, 0.3, 0.6), "picture": (0.3, 0.3, 0.3), "view": (0.2, 0.4, 0.3),
           "runs": (0.6, 0, 0)}  # fmt: skip


def write_clip(path: Path, frames: int = 12, size: tuple[int, int] = (64, 48), rate: int = 8, side: int = 20) -> Path:
    """A bright square that moves one pixel to the right in each frame, on a dark ground with a pattern."""
    width, height = size
    path.parent.mkdir(parents=True, exist_ok=True)
    rows, columns = numpy.mgrid[:height, :width]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=Fraction(rate))
        stream.width, stream.height, stream.pix_fmt = width, height, "bgr0"
        for number in range(frames):
            pixels = numpy.stack([20 + rows % 8, 30 + columns % 8, 60 + (rows + columns) % 8], -1).astype(numpy.uint8)
            left, top = 8 + number, (height - side) // 2
            pixels[top : top + side, left : left + side] = (230, 120 + (rows[:side, :side] * 4) % 80)[0], 180, 40
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def square(number: int, size: tuple[int, int] = (64, 48), side: int = 20) -> torch.Tensor:
    """The exact mask of frame `number` of such a clip, bool `[h, w]`."""
    mask = torch.zeros(size[::-1], dtype=torch.bool)
    top = (size[1] - side) // 2
    mask[top : top + side, 8 + number : 8 + number + side] = True
    return mask


def _tokenizer(words, kind, **special):
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokens = {word: number for number, word in enumerate([*special.values(), *words])}
    inner = Tokenizer(models.WordLevel(tokens, unk_token=special["unk_token"]))
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return kind(tokenizer_object=inner, **special), len(tokens)


def save_blip2(folder: Path) -> Path:
    import transformers as t

    torch.manual_seed(0)
    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer, count = _tokenizer(VOCABULARY, t.PreTrainedTokenizerFast, **special)
    images = t.BlipImageProcessor(size={"height": 32, "width": 32})
    processor = t.Blip2Processor(images, tokenizer, num_query_tokens=4)
    common = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = t.Blip2Config(
        vision_config=t.Blip2VisionConfig(**common, image_size=32, patch_size=8).to_dict(),
        qformer_config=t.Blip2QFormerConfig(**common, encoder_hidden_size=16, vocab_size=30).to_dict(),
        text_config=t.OPTConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, ffn_dim=32, vocab_size=count + 1, word_embed_proj_dim=16,
            max_position_embeddings=64, bos_token_id=0, pad_token_id=1, eos_token_id=2, init_std=0.6,
        ).to_dict(),
        num_query_tokens=4, image_token_index=count, initializer_range=0.6,
    )  # fmt: skip
    t.Blip2ForConditionalGeneration(config).eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def save_sam2(folder: Path) -> Path:
    import transformers as t

    torch.manual_seed(0)
    backbone = t.Sam2HieraDetConfig(
        hidden_size=8, image_size=[64, 64], blocks_per_stage=[1, 2, 2, 1], embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 2], window_size_per_stage=[8, 4, 4, 4], global_attention_blocks=[4],
        window_positional_embedding_background_size=[2, 2],
    )  # fmt: skip
    vision = t.Sam2VisionConfig(
        backbone_config=backbone.to_dict(), backbone_channel_list=[64, 32, 16, 8], fpn_hidden_size=128,
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
    )  # fmt: skip
    config = t.Sam2VideoConfig(
        vision_config=vision.to_dict(),
        prompt_encoder_config={"hidden_size": 128, "image_size": 64, "mask_input_channels": 4},
        mask_decoder_config={"hidden_size": 128, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16},
        image_size=64, num_maskmem=3, max_object_pointers_in_encoder=4, memory_attention_hidden_size=128,
        memory_attention_num_layers=1, memory_attention_feed_forward_hidden_size=32, memory_attention_rope_feat_sizes=[4, 4],
        memory_encoder_hidden_size=128, memory_encoder_output_channels=64, mask_downsampler_embed_dim=128,
        memory_fuser_embed_dim=128, memory_fuser_intermediate_dim=32, initializer_range=0.3,
    )  # fmt: skip
    network = t.Sam2VideoModel(config).eval()
    # a random head says "not in sight", and all masks would be empty
    torch.nn.init.constant_(network.mask_decoder.pred_obj_score_head.proj_out.bias, 50.0)
    network.save_pretrained(folder)
    images = t.Sam2ImageProcessor(size={"height": 64, "width": 64}, mask_size={"height": 16, "width": 16})
    videos = t.Sam2VideoVideoProcessor(size={"height": 64, "width": 64})
    t.Sam2VideoProcessor(images, videos, target_size=64).save_pretrained(folder)
    return folder


def save_grounding(folder: Path) -> Path:
    import transformers as t

    torch.manual_seed(0)
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    words = folder / "vocab.txt"
    folder.mkdir(parents=True, exist_ok=True)
    words.write_text("\n".join([*special.values(), *VOCABULARY]), "utf-8")
    tokenizer = t.BertTokenizerFast(str(words)) if hasattr(t, "BertTokenizerFast") else t.BertTokenizer(str(words))
    count = len(special) + len(VOCABULARY)
    backbone = t.SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
                            out_features=["stage2", "stage3", "stage4"])  # fmt: skip
    text = t.BertConfig(vocab_size=count, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
                        max_position_embeddings=64)  # fmt: skip
    config = t.GroundingDinoConfig(
        backbone_config=backbone.to_dict(), text_config=text.to_dict(), d_model=32, encoder_layers=1,
        decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32,
        num_queries=10, num_feature_levels=3, max_text_len=32, disable_custom_kernels=True, use_pretrained_backbone=False,
    )  # fmt: skip
    t.GroundingDinoForObjectDetection(config).eval().save_pretrained(folder)
    images = t.GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    t.GroundingDinoProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def save_spacy(folder: Path, vectors: bool = True, tags: bool = True) -> Path:
    """A blank pipeline whose nouns and vectors were set by hand."""
    import spacy

    pipeline = spacy.blank("en")
    if tags:
        ruler = pipeline.add_pipe("attribute_ruler")
        ruler.add(patterns=[[{"LOWER": noun}] for noun in NOUNS], attrs={"POS": "NOUN"})
    if vectors:
        for word, vector in VECTORS.items():
            pipeline.vocab.set_vector(word, numpy.asarray(vector, numpy.float32))
    pipeline.to_disk(folder)
    return folder

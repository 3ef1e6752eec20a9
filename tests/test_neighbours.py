"""A node of another pack that replaces cross-attention after our adapter is found and named."""

from __future__ import annotations

import pytest
import torch


class Theirs:
    """As IP-Adapter nodes set it."""

    def __init__(self):
        self.calls = 0

    def __call__(self, q, k, v, extra_options):
        from comfy.ldm.modules.attention import optimized_attention

        self.calls += 1
        return optimized_attention(q, k, v, extra_options["n_heads"])


def test_one_that_takes_our_place_is_named(rig, adapted, caplog):
    model, theirs = adapted.clone(), Theirs()
    model.set_model_attn2_replace(theirs, "middle", 0, 0)
    model.set_model_attn2_replace(theirs, "input", 1, 0)
    out = rig.run(model, *rig.wired())
    assert theirs.calls and torch.isfinite(out).all()
    said = [record.getMessage() for record in caplog.records if record.name == "magdiff"]
    assert len(said) == 1 and f"({Theirs.__module__}) replaced 2 cross-attentions after Apply MagDiff Adapter" in said[0]
    assert "the picture does not reach those layers" in said[0]


def test_one_for_a_whole_block_that_is_never_called_is_named(rig, adapted, caplog):
    """The key that IP-Adapter nodes use for Stable Diffusion 1.5."""
    model, theirs = adapted.clone(), Theirs()
    model.set_model_attn2_replace(theirs, "middle", 0)
    out = rig.run(model, *rig.wired())
    assert not theirs.calls and torch.equal(out, rig.run(adapted, *rig.wired()))
    said = [record.getMessage() for record in caplog.records if record.name == "magdiff"]
    assert len(said) == 1 and "replaced 1 cross-attentions after Apply MagDiff Adapter, and is not called there" in said[0]


@pytest.mark.parametrize("layer", [(), (0,)])
def test_one_before_ours_is_called_weighed_and_not_named(rig, layer, caplog):
    theirs, base = Theirs(), rig.tiny_model()
    base.set_model_attn2_replace(theirs, "middle", 0, *layer)
    model = rig.adapted(base)
    rig.run(model, *rig.wired())
    assert theirs.calls and not [record for record in caplog.records if record.name == "magdiff"]
    # an image stream that is off is no ground for a warning
    off = rig.adapted(rig.tiny_model(), image_stream=0.0)
    off.set_model_attn2_replace(theirs, "middle", 0, *layer)
    rig.run(off, *rig.wired())
    assert not [record for record in caplog.records if record.name == "magdiff"]


def test_all_blocks_have_the_key_that_core_looks_up(adapted):
    from magdiff_core.host.neighbours import attention_key

    assert attention_key("input_blocks.4.1.transformer_blocks.0") == ("input", 4, 0)
    assert attention_key("middle_block.1.transformer_blocks.1") == ("middle", 0, 1)
    assert attention_key("output_blocks.11.1.transformer_blocks.0") == ("output", 11, 0)

from __future__ import annotations

import pytest
import torch

from edgetl.families.hf_bert import PLUGIN as BERT
from edgetl.families.hf_vit import PLUGIN as VIT
from edgetl.network.names import to_canonical, to_foreign, translate

FOREIGN = {
    "layers.11.attn.q.weight": {
        VIT: ["vit.layers.11.attention.q_proj.weight", "vit.encoder.layer.11.attention.attention.query.weight"],
        BERT: ["bert.encoder.layer.11.attention.self.query.weight", "encoder.layer.11.attention.self.query.weight"],
    },
    "layers.0.attn.o.bias": {
        VIT: ["vit.layers.0.attention.o_proj.bias", "encoder.layer.0.attention.output.dense.bias"],
        BERT: ["bert.encoder.layer.0.attention.output.dense.bias"],
    },
    "layers.0.ffn.up.weight": {
        VIT: ["deit.layers.0.mlp.fc1.weight", "deit.encoder.layer.0.intermediate.dense.weight"],
        BERT: ["bert.encoder.layer.0.intermediate.dense.weight"],
    },
    "layers.0.ffn.down.weight": {
        VIT: ["vit.layers.0.mlp.fc2.weight", "vit.encoder.layer.0.output.dense.weight"],
        BERT: ["bert.encoder.layer.0.output.dense.weight"],
    },
    "layers.0.norm2.weight": {
        VIT: ["vit.encoder.layer.0.layernorm_after.weight"],
        BERT: ["bert.encoder.layer.0.output.LayerNorm.weight"],
    },
    "positions": {VIT: ["vit.embeddings.position_embeddings"], BERT: []},
    "words.weight": {VIT: [], BERT: ["bert.embeddings.word_embeddings.weight"]},
    "head.weight": {VIT: ["classifier.weight"], BERT: ["classifier.weight"]},
}


@pytest.mark.parametrize("family", [VIT, BERT], ids=lambda f: f.name)
@pytest.mark.parametrize("canonical", FOREIGN)
def test_every_layout_gives_the_same_canonical_name(family, canonical):
    for foreign in FOREIGN[canonical][family]:
        found, unknown = translate(family.names, {foreign: torch.zeros(1)})
        assert (list(found), unknown) == ([canonical], [])


@pytest.mark.parametrize("family", [VIT, BERT], ids=lambda f: f.name)
def test_names_come_back_in_every_layout(family):
    for layout in family.names:
        for canonical in FOREIGN:
            if (foreign := to_foreign(layout, canonical)) is not None:
                assert to_canonical(layout, foreign) == canonical


def test_adapter_names_translate_by_their_prefix():
    old = "vit.encoder.layer.2.attention.attention.query.lora_A.weight"
    new = "vit.layers.2.attention.q_proj.lora_A.weight"
    for name in (old, new):
        assert list(translate(VIT.names, {name: torch.zeros(1)})[0]) == ["layers.2.attn.q.lora_A.weight"]


def test_a_longer_word_is_no_prefix_match():
    assert to_canonical(VIT.names[0], "classifier2.weight") is None

"""Adapters that peft wrote, merged without peft."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgetl.errors import BadInput, Refused
from edgetl.methods.lora import merge_adapter

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
TO_4_57 = (
    (r"vit\.layers\.", "vit.encoder.layer."),
    (r"attention\.([qkv])_proj", lambda m: "attention.attention." + {"q": "query", "k": "key", "v": "value"}[m[1]]),
    (r"attention\.o_proj", "attention.output.dense"),
    (r"mlp\.fc1", "intermediate.dense"),
    (r"mlp\.fc2", "output.dense"),
)


def write(folder, net, **options):
    """An adapter with random weights as peft saves it, and the module that peft merges it into."""
    import warnings

    from peft import LoraConfig, get_peft_model

    parts = ("attn.q", "attn.v", "ffn.up")
    targets = [net.names().name(f"layers.{i}.{part}") for i in (0, 1) for part in parts]
    head = net.names().name("head")
    config = LoraConfig(r=4, lora_alpha=6, target_modules=targets, modules_to_save=[head], **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = get_peft_model(net.copy().module, config)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if "lora_" in name or "modules_to_save" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        wrapped.save_pretrained(folder)
        return wrapped.merge_and_unload()


def change(folder, **options):
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | options))


@pytest.mark.parametrize(
    "options",
    [{}, {"use_rslora": True}, {"rank_pattern": {"query": 2, "q_proj": 2}, "alpha_pattern": {"fc1": 3, "q_proj": 9}}],
    ids=["plain", "rslora", "patterns"],
)
def test_merging_equals_pefts(network, tiny, tmp_path, options):
    net = network(0)
    theirs = write(tmp_path, net, **options)
    before = net.digest
    ours = merge_adapter(net, tmp_path)
    batch = tiny.batch(tiny.rows("test"))
    with torch.no_grad():
        wanted = net.family.logits(theirs, batch)
        assert (ours.logits(batch) - wanted).abs().max() < 1e-5 * wanted.abs().max()
    assert net.digest == before != ours.digest
    assert all(p.requires_grad for p in ours.module.parameters())


def test_an_adapter_with_the_names_of_another_version_merges_to_the_same(network, tmp_path):
    net = network(0)
    write(tmp_path, net)
    expected = merge_adapter(net, tmp_path).digest
    tensors = load_file(tmp_path / WEIGHTS)
    if not any("q_proj" in name for name in tensors):
        pytest.skip("this version of transformers writes the other names")
    renamed = {}
    for theirs, tensor in tensors.items():
        name = theirs
        for pattern, new in TO_4_57:
            name = re.sub(pattern, new, name)
        renamed[name] = tensor
    save_file(renamed, tmp_path / WEIGHTS)
    assert merge_adapter(net, tmp_path).digest == expected


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"option_of_tomorrow": 1}, "option_of_tomorrow"),
        ({"alpha_pattern": {"(a+)+": 1}}, "regular expression"),
    ],
)
def test_what_cannot_be_merged_is_named(network, tmp_path, options, named):
    write(tmp_path, network(0))
    change(tmp_path, **options)
    with pytest.raises(BadInput, match=named):
        merge_adapter(network(0), tmp_path)


def test_an_adapter_of_another_network_is_refused(network, tmp_path):
    net = network(0)
    write(tmp_path, net)
    group = next(g for g in net.family.units(net.module) if g.kind == "neurons")
    with pytest.raises(BadInput, match=r"layers\.0\.ffn\.up"):
        merge_adapter(net.edit([group.keep([0, 1])]), tmp_path)
    with pytest.raises(BadInput, match="does not have"):
        merge_adapter(net.edit([group.keep([])]), tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    save_file({**tensors, "base_model.model.lm.q.lora_A.weight": torch.zeros(2, 2)}, tmp_path / WEIGHTS)
    with pytest.raises(BadInput, match=r"lm\.q"):
        merge_adapter(net, tmp_path)


def test_other_labels_are_refused(network, tmp_path):
    write(tmp_path, network(0))
    tensors = load_file(tmp_path / WEIGHTS)
    head = next(name for name in tensors if name.endswith("classifier.weight"))
    save_file({**tensors, head: torch.zeros(7, 16)}, tmp_path / WEIGHTS)
    with pytest.raises(BadInput, match=r"head\.weight"):
        merge_adapter(network(0), tmp_path)


def test_pickles_damage_and_absence_are_refused(network, tmp_path):
    net = network(0)
    with pytest.raises(BadInput, match=CONFIG):
        merge_adapter(net, tmp_path)
    write(tmp_path, net)
    data = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(data[:100])
    with pytest.raises(Refused, match="damaged"):
        merge_adapter(net, tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(BadInput, match=WEIGHTS):
        merge_adapter(net, tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(Refused, match="pickle"):
        merge_adapter(net, tmp_path)

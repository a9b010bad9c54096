"""Folders as transformers writes them, under whichever version runs the tests."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from edgetl.errors import BadInput, Refused
from edgetl.families.hf_bert import PLUGIN as BERT
from edgetl.families.hf_vit import PLUGIN as VIT
from edgetl.network.network import create, load, save

TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
IMAGE = {"image_size": 8, "patch_size": 4, "num_channels": 1}
TEXT = {"vocab_size": 20, "max_position_embeddings": 16}
LABELS = {"id2label": {0: "cat", 1: "dog"}, "label2id": {"cat": 0, "dog": 1}}


def write(folder, model, **kwargs):
    transformers.utils.logging.disable_progress_bar()
    model.eval().save_pretrained(folder, **kwargs)
    return model


@pytest.fixture
def vit(tmp_path):
    torch.manual_seed(1)
    config = transformers.ViTConfig(**TINY, **IMAGE, **LABELS)
    return tmp_path, write(tmp_path, transformers.ViTForImageClassification(config))


@pytest.fixture
def bert(tmp_path):
    torch.manual_seed(1)
    config = transformers.BertConfig(**TINY, **TEXT, **LABELS)
    return tmp_path, write(tmp_path, transformers.BertForSequenceClassification(config))


def test_a_fine_tuned_vit_answers_as_before(vit):
    folder, model = vit
    (folder / "README.md").write_text("---\ntags: [x]\nlicense: apache-2.0\n---\n# card\nlicense: mit\n")
    net = create("hf_vit", str(folder), ["cat", "dog"], seed=0)
    inputs = VIT.example(net.config, 3)
    assert torch.equal(net.logits(inputs), model(**inputs).logits)
    assert net.facts["head"] == "kept"
    assert net.facts["licence"] == "apache-2.0"
    assert net.facts["source"] == folder.name


def test_other_labels_get_a_new_head_from_the_seed(vit):
    folder, model = vit
    one, same, other = (create("hf_vit", str(folder), ["dog", "cat"], seed=s) for s in (0, 0, 1))
    assert one.facts["head"] == "new"
    assert one.digest == same.digest != other.digest
    assert torch.equal(one.state()["patch.weight"], model.vit.embeddings.patch_embeddings.projection.weight)
    assert 0 < one.state()["head.weight"].std() < 0.05
    assert torch.equal(one.state()["head.bias"], torch.zeros(2))


@pytest.mark.parametrize("prefix", ["vit.", ""], ids=["whole", "encoder only"])
@pytest.mark.parametrize("new", [True, False], ids=["names of 5", "names of 4"])
def test_weights_are_read_under_the_names_of_both_versions(vit, prefix, new):
    folder, _ = vit
    net = create("hf_vit", str(folder), ["cat", "dog"], seed=0)
    layout = VIT.names[(0 if prefix else 2) + (0 if new else 1)]
    from edgetl.network.names import to_foreign

    renamed = {to_foreign(layout, name): tensor for name, tensor in net.state().items()}
    assert ("vit.encoder.layer.0.attention.attention.query.weight" in renamed) == (bool(prefix) and not new)
    save_file(renamed, folder / "model.safetensors")
    assert create("hf_vit", str(folder), ["cat", "dog"], seed=0).digest == net.digest


def test_a_deit_answers_as_before(tmp_path):
    model = write(tmp_path, transformers.DeiTForImageClassification(transformers.DeiTConfig(**TINY, **IMAGE, **LABELS)))
    with torch.no_grad():
        model.deit.embeddings.distillation_token.normal_()
    write(tmp_path, model)
    net = create("hf_vit", str(tmp_path), ["cat", "dog"], seed=0)
    inputs = VIT.example(net.config, 2)
    assert torch.equal(net.logits(inputs), model(**inputs).logits)
    save(net, tmp_path / "net")
    assert load(tmp_path / "net").digest == net.digest


def test_a_deit_finishes_from_its_last_block(tmp_path):
    net = create("hf_vit", {"model_type": "deit", "image_size": 8, "patch_size": 4}, ["cat", "dog"], seed=0)
    heard = []
    net.at(VIT.stages(net.module)[-1]).register_forward_hook(lambda _, __, out: heard.append(out))
    inputs = VIT.example(net.config, 2)
    wanted = net.logits(inputs)
    hidden = heard[0][0] if isinstance(heard[0], tuple) else heard[0]
    assert torch.equal(VIT.finish(net.module, hidden, inputs), wanted)


def test_a_deit_with_two_heads_starts_from_a_new_head_or_is_an_error(tmp_path):
    config = transformers.DeiTConfig(**TINY, **IMAGE, **LABELS)
    write(tmp_path, transformers.DeiTForImageClassificationWithTeacher(config))
    with pytest.raises(BadInput, match="two heads"):
        create("hf_vit", str(tmp_path), ["cat", "dog"], seed=0)
    assert create("hf_vit", str(tmp_path), ["a", "b", "c"], seed=0).facts["head"] == "new"


def test_the_preprocessing_that_weights_want_is_read(vit):
    folder, _ = vit
    recorded = {"image_mean": [0.5], "image_std": [0.25], "resample": 3, "size": {"height": 8, "width": 8}}
    (folder / "preprocessor_config.json").write_text(json.dumps(recorded))
    net = create("hf_vit", str(folder), ["cat", "dog"], seed=0)
    prep = VIT.prep(str(folder), net.config)
    assert (prep.size, prep.channels, prep.mean, prep.std, prep.resample) == ((8, 8), 1, (0.5,), (0.25,), "bicubic")
    save(net, folder / "saved")
    assert VIT.prep(str(folder / "saved"), net.config) == prep


def test_a_fine_tuned_bert_answers_as_before(bert):
    folder, model = bert
    net = create("hf_bert", str(folder), ["cat", "dog"], seed=0)
    inputs = BERT.example(net.config, 3)
    assert net.config["pooling"] == "cls"
    assert net.facts["head"] == "kept"
    torch.testing.assert_close(net.logits(inputs), model(**inputs).logits, rtol=0, atol=0)


def test_a_sentence_encoder_pools_the_mean_without_its_pooler(tmp_path):
    write(tmp_path, transformers.BertModel(transformers.BertConfig(**TINY, **TEXT)))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    net = create("hf_bert", str(tmp_path), ["a", "b"], seed=0)
    assert net.config["pooling"] == "mean"
    assert not any(name.startswith("pooler") for name in net.state())


def test_padding_does_not_change_a_mean_pooled_answer():
    net = create("hf_bert", TEXT, ["a", "b"], seed=0)
    ids = torch.tensor([[3, 4, 5]])
    short = net.logits({"input_ids": ids, "attention_mask": torch.ones(1, 3, dtype=torch.long)})
    padded = torch.nn.functional.pad(ids, (0, 4))
    long = net.logits({"input_ids": padded, "attention_mask": (padded > 0).long()})
    torch.testing.assert_close(short, long)


@pytest.mark.parametrize(("kind", "others"), [("vit", 1), ("deit", 2)])
def test_a_mean_pooled_vit_answers_from_its_patches(tmp_path, kind, others):
    net = create("hf_vit", {**TINY, **IMAGE, "model_type": kind, "pooling": "mean"}, ["a", "b"], seed=0)
    assert net.config["pooling"] == "mean"
    heard = []
    net.at(net.family.stages(net.module)[-1]).register_forward_hook(lambda *call: heard.append(call[-1]))
    answer = net.logits(net.family.example(net.config, 3))
    hidden = heard[0][0] if isinstance(heard[0], tuple) else heard[0]
    norm, head = net.at("norm"), net.at("head")
    patches = torch.nn.functional.layer_norm(hidden, norm.normalized_shape, norm.weight, norm.bias, norm.eps)[
        :, others:
    ]
    torch.testing.assert_close(answer, head(patches.mean(1)))
    torch.testing.assert_close(net.family.finish(net.module, hidden, {}), answer)
    save(net, tmp_path / "net")
    back = load(tmp_path / "net")
    torch.testing.assert_close(back.logits(net.family.example(net.config, 3)), answer)
    assert "pooling" not in create("hf_vit", {**TINY, **IMAGE, "pooling": "cls"}, ["a", "b"], seed=0).config


def test_a_tokenizer_is_made_from_a_vocabulary(bert, monkeypatch):
    folder, _ = bert
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "film"]) + "\n")
    net = create("hf_bert", str(folder), ["cat", "dog"], seed=0)
    from tokenizers import Tokenizer

    encoded = Tokenizer.from_file(BERT.prep(str(folder), net.config).tokenizer).encode("Good film")
    assert encoded.ids == [2, 5, 6, 3]


def test_weights_in_several_files_are_read(vit):
    folder, _ = vit
    whole = create("hf_vit", str(folder), ["cat", "dog"], seed=0)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    where = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(tensors)}
    for part in set(where.values()):
        save_file({k: v for k, v in tensors.items() if where[k] == part}, folder / part)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    assert create("hf_vit", str(folder), ["cat", "dog"], seed=0).digest == whole.digest
    (folder / part).unlink()
    with pytest.raises(BadInput, match="is missing"):
        create("hf_vit", str(folder), ["cat", "dog"], seed=0)
    index.write_text(json.dumps({"weight_map": {"x": "../secret.safetensors"}}))
    with pytest.raises(Refused):
        create("hf_vit", str(folder), ["cat", "dog"], seed=0)


def test_only_pickles_are_refused_with_the_way_out(vit):
    folder, _ = vit
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(Refused, match="pickle") as caught:
        create("hf_vit", str(folder), ["cat", "dog"], seed=0)
    assert "save_pretrained" in caught.value.fix


def test_code_of_its_own_is_refused(vit):
    folder, _ = vit
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "evil.Model"}}))
    with pytest.raises(Refused, match="auto_map"):
        create("hf_vit", str(folder), ["cat", "dog"], seed=0)


def test_damaged_weights_are_refused(vit):
    folder, _ = vit
    (folder / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(Refused, match="damaged"):
        create("hf_vit", str(folder), ["cat", "dog"], seed=0)


@pytest.mark.parametrize("drop", [True, False], ids=["fewer weights", "more layers"])
def test_weights_of_another_shape_are_an_error(vit, drop):
    folder, _ = vit
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] = 1 if drop else 3
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match=r"layers\."):
        create("hf_vit", str(folder), ["cat", "dog"], seed=0)


def test_the_wrong_family_is_an_error(vit, tmp_path):
    folder, _ = vit
    with pytest.raises(BadInput, match="'vit' model"):
        create("hf_bert", str(folder), ["cat", "dog"], seed=0)


def test_an_onnx_file_is_no_source(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"")
    for source in (tmp_path / "model.onnx", tmp_path):
        with pytest.raises(BadInput, match="ONNX file"):
            create("hf_vit", str(source), ["a", "b"], seed=0)


@pytest.mark.parametrize("source", ["no/such/folder", "/no/such", "nobody/nothing", "a b"])
def test_a_source_that_is_nowhere_is_an_error(source, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BadInput, match="no folder"):
        create("hf_vit", source, ["a", "b"], seed=0)


@pytest.mark.parametrize(
    ("family", "sizes", "words"),
    [
        ("hf_vit", {"hiden_size": 3}, "hidden_size"),
        ("hf_vit", {"hidden_size": 10, "num_attention_heads": 3}, "not divisible"),
        ("hf_vit", {"image_size": 9, "patch_size": 2}, "patch"),
        ("hf_vit", {"patch_size": 0}, "patch"),
        ("hf_vit", {"hidden_size": 0}, "hidden_size"),
        ("hf_vit", {"hidden_act": "evil"}, "hidden_act"),
        ("hf_vit", {"hidden_size": "wide"}, "hidden_size"),
        ("hf_bert", {"pooling": "max"}, "pooling"),
        ("hf_bert", {"vocab_size": 5, "pad_token_id": 9}, "pad_token_id"),
        ("hf_bert", {"image_size": 8}, "image_size"),
    ],
)
def test_an_unknown_or_impossible_size_is_an_error_that_names_it(family, sizes, words):
    with pytest.raises(BadInput) as caught:
        create(family, sizes, ["a", "b"], seed=0)
    assert words in str(caught.value)


def test_one_label_is_an_error():
    with pytest.raises(BadInput, match="two labels"):
        create("hf_vit", {}, ["a"], seed=0)


def test_images_need_not_be_square():
    net = create("hf_vit", {"image_size": [8, 12], "patch_size": [4, 3]}, ["a", "b"], seed=0)
    assert net.family.example(net.config, 1)["pixel_values"].shape == (1, 3, 8, 12)
    assert net.family.prep({}, net.config).size == (8, 12)
    assert net.logits(net.family.example(net.config, 2)).shape == (2, 2)

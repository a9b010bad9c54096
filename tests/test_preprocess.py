"""Raw values become the same inputs whatever they come as, and malformed lists are refused."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from edgetl.errors import BadInput, Refused
from edgetl.images import MAX_PIXELS, center_crop, decode, resize_shorter
from edgetl.preprocess import Preprocess, Raw

IMAGE = Raw("image")
HEAD = [
    {"op": "decode", "mode": "RGB"},
    {"op": "resize", "height": 6, "width": 5, "resample": "bilinear"},
    {"op": "channels_first"},
]
TAIL = [{"op": "to_float"}, {"op": "normalise", "mean": [0.5, 0.4, 0.3], "std": [0.5, 0.2, 0.1]}]
WORDS = ["[PAD]", "[UNK]", "a", "good", "bad", "film"]


def process(operations, raw=IMAGE, inputs=("pixel_values",), assets=Path()):
    return Preprocess(operations, raw, inputs, assets)


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)


@pytest.fixture
def tokens(tmp_path):
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return process(
        [{"op": "tokenize", "file": "tokenizer.json", "length": 5}],
        Raw("text"),
        ("input_ids", "attention_mask"),
        tmp_path,
    )


def png(pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def test_path_bytes_pil_and_array_of_an_image_give_the_same(pixels, tmp_path):
    (tmp_path / "a.png").write_bytes(png(pixels))
    p = process(HEAD + TAIL)
    ways = [tmp_path / "a.png", str(tmp_path / "a.png"), png(pixels), Image.fromarray(pixels), pixels]
    feeds = p.feed(ways)["pixel_values"]
    assert feeds.shape == (5, 3, 6, 5)
    assert feeds.dtype == np.float32
    assert all(np.array_equal(feeds[0], other) for other in feeds[1:])
    assert np.array_equal(p.feed([p.from_bytes(png(pixels))])["pixel_values"][0], feeds[0])


def test_the_tail_scales_and_normalises_each_channel(pixels):
    p = process([HEAD[0], HEAD[2], *TAIL])
    got = p.feed([pixels])["pixel_values"][0]
    want = (pixels / 255.0 - [0.5, 0.4, 0.3]) / [0.5, 0.2, 0.1]
    np.testing.assert_allclose(got, want.transpose(2, 0, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_the_turn_that_exif_asks_for_is_applied(pixels, tmp_path, orientation):
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / "turned.png", exif=exif)
    turns = {3: 2, 6: -1, 8: 1}[orientation]
    assert np.array_equal(decode(tmp_path / "turned.png", "RGB"), np.rot90(pixels, turns))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_common_mode_decodes_to_grey_and_to_colour(mode):
    array = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    image = Image.fromarray(array) if mode == "I;16" else Image.new("RGB", (8, 8), (10, 200, 30)).convert(mode)
    assert decode(image, "RGB").shape == (8, 8, 3)
    grey = decode(image, "L")
    assert grey.shape == (8, 8, 1)
    if mode == "I;16":
        assert np.array_equal(grey[..., 0], array >> 8)


def test_the_same_list_takes_arrays_of_the_data_and_images_of_another_size():
    raw = Raw("array", "uint8", (8, 8))
    size = {"op": "resize", "height": 8, "width": 8, "resample": "bilinear"}
    p = process([{"op": "decode", "mode": "L"}, size, {"op": "channels_first"}, {"op": "to_float"}], raw)
    digit = np.arange(64, dtype=np.uint8).reshape(8, 8)
    assert np.array_equal(p.from_bytes(digit.tobytes()), digit)
    feed = p.feed([digit, Image.fromarray(digit), np.zeros((20, 30, 3), np.uint8)])["pixel_values"]
    assert feed.shape == (3, 1, 8, 8)
    assert np.array_equal(feed[0], feed[1])


def test_arrays_without_a_list_pass_through_and_are_checked():
    p = process([{"op": "to_float"}], Raw("array", "float32", (4, 2)))
    x = np.random.default_rng(1).normal(size=(4, 2)).astype(np.float32)
    assert np.array_equal(p.feed([x, p.from_bytes(x.tobytes())])["pixel_values"], np.stack([x, x]))
    assert p.head(x.astype(np.float64))["pixel_values"].dtype == np.float32
    for wrong in (x[:3], x.tolist(), x.astype(complex), "x.npy"):
        with pytest.raises(BadInput):
            p.head(wrong)
    with pytest.raises(BadInput, match="bytes"):
        p.from_bytes(x.tobytes()[:-1])


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 30), st.integers(1, 30))
@settings(max_examples=40, deadline=None)
def test_resize_and_crop_always_end_at_the_size_asked_for(height, width, to_height, to_width):
    x = np.full((height, width, 3), 7, np.uint8)
    for sized in (
        [{"op": "resize", "height": to_height, "width": to_width, "resample": "bicubic"}],
        [
            {"op": "resize_shorter", "size": max(to_height, to_width), "resample": "nearest"},
            {"op": "center_crop", "height": to_height, "width": to_width},
        ],
    ):
        got = process([HEAD[0], *sized, HEAD[2]]).head(x)["pixel_values"]
        assert got.shape == (3, to_height, to_width)
        assert (got == 7).all()


def test_the_shorter_side_keeps_the_proportion_and_a_crop_larger_than_the_image_adds_zeros():
    assert resize_shorter(np.zeros((10, 25, 1), np.uint8), 4, "bilinear").shape == (4, 10, 1)
    padded = center_crop(np.ones((2, 6, 1), np.uint8), 4, 4)
    assert padded[..., 0].tolist() == [[0] * 4, [1] * 4, [1] * 4, [0] * 4]


def test_damaged_and_wrong_images_name_the_problem(pixels, tmp_path):
    p = process(HEAD)
    whole = png(pixels)
    (tmp_path / "text.png").write_text("no image")
    tall = np.broadcast_to(np.zeros((1, 1), np.uint8), (MAX_PIXELS + 1, 1))
    cases = [b"", whole[:60], whole[:-30], b"GIF89a", tmp_path / "text.png", tmp_path / "none.png", "none.png"]
    for wrong in [*cases, 3, None, pixels.astype(float), pixels[0, 0], np.zeros((0, 4), np.uint8), tall]:
        with pytest.raises(BadInput) as caught:
            p.head(wrong)
        assert caught.value.fix


@pytest.mark.parametrize("side", [9_450, 30_000])
def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(side):
    with pytest.raises(BadInput, match="million pixels"):
        process(HEAD).head(b"P5 %d %d 255\n" % (side, side))


def test_a_narrow_image_cannot_fill_the_memory():
    with pytest.raises(BadInput, match="too narrow"):
        resize_shorter(np.zeros((1, 100_000, 1), np.uint8), 1000, "bilinear")


def test_text_is_padded_cut_and_trimmed_to_the_longest_of_the_batch(tokens):
    head = tokens.head("a good film")
    assert head["input_ids"].tolist() == [2, 3, 5, 0, 0]
    assert head["attention_mask"].tolist() == [1, 1, 1, 0, 0]
    assert tokens.head("a a a a a a a")["input_ids"].tolist() == [2] * 5
    feed = tokens.feed(["a good film", "bad"])
    assert feed["input_ids"].tolist() == [[2, 3, 5], [4, 0, 0]]
    assert feed["attention_mask"].dtype == feed["input_ids"].dtype == np.int64
    narrow = {"input_ids": np.array([[2, 3, 0]], np.int32), "attention_mask": np.array([[1, 1, 0]], np.uint8)}
    trimmed = tokens.tail(narrow)
    assert trimmed["input_ids"].tolist() == [[2, 3]]
    assert trimmed["attention_mask"].dtype == np.int64
    assert tokens.from_bytes("schön".encode()) == "schön"


def test_wrong_text_names_the_problem(tokens):
    for wrong in ("", "  \n", b"a", 3, None):
        with pytest.raises(BadInput):
            tokens.head(wrong)
    with pytest.raises(BadInput, match="UTF-8"):
        tokens.from_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match="no input"):
        tokens.feed([])


def test_a_missing_or_damaged_tokenizer_is_named(tokens, tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": 3}))
    with pytest.raises(Refused, match=r"tokenizer\.json"):
        tokens.head("a")
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(BadInput, match="no tokenizer"):
        tokens.head("a")


TEXT = {"op": "tokenize", "file": "tokenizer.json", "length": 8}
SIZE = HEAD[1]
WRONG = [
    ([HEAD[0], {"op": "exec"}], IMAGE, 2),
    ([HEAD[0], "resize"], IMAGE, 2),
    ([HEAD[0], {"op": ["resize"]}], IMAGE, 2),
    ([{"op": "decode", "mode": "CMYK"}], IMAGE, 1),
    ([{"op": "decode", "mode": ["L"]}], IMAGE, 1),
    ([HEAD[0], {"op": "resize", "height": 6}], IMAGE, 2),
    ([HEAD[0], SIZE | {"extra": 1}], IMAGE, 2),
    ([HEAD[0], SIZE | {"height": 0}], IMAGE, 2),
    ([HEAD[0], SIZE | {"height": True}], IMAGE, 2),
    ([HEAD[0], SIZE | {"height": 4.0}], IMAGE, 2),
    ([HEAD[0], SIZE | {"height": 10**9}], IMAGE, 2),
    ([HEAD[0], SIZE | {"resample": "magic"}], IMAGE, 2),
    ([*HEAD, TAIL[0], TAIL[1] | {"std": [1.0, 0.0, 1.0]}], IMAGE, 5),
    ([*HEAD, TAIL[0], TAIL[1] | {"mean": [float("nan")] * 3}], IMAGE, 5),
    ([*HEAD, TAIL[0], TAIL[1] | {"mean": "abc"}], IMAGE, 5),
    ([*HEAD, TAIL[0], TAIL[1] | {"mean": [0.1], "std": [0.1]}], IMAGE, 5),
    ([*HEAD, TAIL[1]], IMAGE, 4),
    ([HEAD[0], *TAIL, SIZE], IMAGE, 4),
    ([HEAD[0], HEAD[0]], IMAGE, 2),
    ([SIZE], IMAGE, 1),
    ([SIZE], Raw("array", "uint8", (4, 4)), 1),
    ([HEAD[0]], Raw("array", "float32", (4, 4)), 1),
    ([HEAD[0]], Raw("text"), 1),
    ([TEXT], IMAGE, 1),
    ([TEXT, TAIL[0]], Raw("text"), 1),
    ([TEXT | {"length": 10**9}], Raw("text"), 1),
    *[([TEXT | {"file": name}], Raw("text"), 1) for name in ("../t.json", "/etc/passwd", "..", "", "a\\b", "a\0b", 3)],
]


@pytest.mark.parametrize(("operations", "raw", "number"), WRONG)
def test_a_malformed_list_is_refused_by_the_number_of_its_operation(operations, raw, number):
    inputs = ("input_ids",) if raw.kind == "text" else ("pixel_values",)
    with pytest.raises(Refused, match=f"operation {number}:") as caught:
        process(operations, raw, inputs)
    assert caught.value.fix


@pytest.mark.parametrize(
    "raw", [Raw("array", "object", (2,)), Raw("array", "uint8", (10**6, 10**6)), Raw("array"), Raw("exe")]
)
def test_an_absurd_kind_of_raw_data_is_refused(raw):
    with pytest.raises(Refused):
        process([{"op": "to_float"}], raw)


def test_a_long_list_and_inputs_that_nothing_fills_are_refused():
    for operations, inputs in (([HEAD[0]] + [SIZE] * 20, ("x",)), (HEAD, ()), (HEAD, ("x", "y")), ({"op": 1}, ("x",))):
        with pytest.raises(Refused):
            process(operations, IMAGE, inputs)


def test_arrays_of_the_right_size_need_neither_pillow_nor_tokenizers():
    code = """
import sys, numpy as np
from pathlib import Path
from edgetl.preprocess import Preprocess, Raw
ops = [{"op": "decode", "mode": "L"}, {"op": "resize", "height": 4, "width": 4, "resample": "bilinear"},
       {"op": "channels_first"}, {"op": "to_float"}]
Preprocess(ops, Raw("array", "uint8", (4, 4)), ("x",), Path()).feed([np.zeros((4, 4), np.uint8)])
print(sorted({"PIL", "tokenizers", "pydantic", "torch", "onnx", "transformers"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

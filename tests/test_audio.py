"""Recordings become the same spectrogram whatever they come as; damaged files and lists are refused."""

from __future__ import annotations

import io
import wave
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl.audio import MAX_BYTES, decode, frames, log_mel, mel_filters, pad_or_trim
from edgetl.errors import BadInput, Refused
from edgetl.preprocess import Preprocess, Raw

RATE = 8000
MEL = {"op": "log_mel", "rate": RATE, "window": 64, "hop": 32, "bands": 8, "low": 20.0, "high": 4000.0, "floor": 1e-6}
LIST = [{"op": "decode_wav", "rate": RATE}, {"op": "pad_or_trim", "samples": 400}, MEL, {"op": "to_float"}]
SCALE = {"op": "normalise", "mean": [-4.0], "std": [3.0]}


def wav(samples: np.ndarray, rate: int = RATE, bits: int = 16) -> bytes:
    """The bytes of a WAV file of (T,) or (T, channels) int16 samples."""
    file = io.BytesIO()
    with wave.open(file, "wb") as made:
        made.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        made.setsampwidth(bits // 8)
        made.setframerate(rate)
        made.writeframes(samples.astype("<i2" if bits == 16 else "u1").tobytes())
    return file.getvalue()


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(-32768, 32768, shape).astype(np.int16)


def process(operations=LIST) -> Preprocess:
    return Preprocess(operations, Raw("audio"), ("input_values",), Path())


class TestDecode:
    def test_path_bytes_and_arrays_of_a_recording_give_the_same(self, tmp_path):
        samples = noise(300)
        (tmp_path / "a.wav").write_bytes(wav(samples))
        plain = samples / np.float32(32768)
        ways = [tmp_path / "a.wav", str(tmp_path / "a.wav"), wav(samples), samples, samples[:, None], plain]
        feed = process().feed(ways)["input_values"]
        assert feed.shape == (6, 1, 8, frames(400, 64, 32))
        assert feed.dtype == np.float32
        assert all(np.array_equal(feed[0], other) for other in feed[1:])
        assert np.array_equal(process().feed([process().from_bytes(wav(samples))])["input_values"][0], feed[0])

    def test_two_channels_are_averaged(self):
        samples = noise(50, 2)
        assert np.array_equal(decode(wav(samples), RATE), samples.astype(np.float64).mean(1) / 32768)

    def test_the_loudest_sample_is_one(self):
        assert decode(np.array([-32768, 0, 16384], np.int16), RATE).tolist() == [-1.0, 0.0, 0.5]

    def test_another_rate_is_refused_and_not_resampled(self):
        with pytest.raises(BadInput, match="44100 samples a second, where 8000") as caught:
            decode(wav(noise(50), 44100), RATE)
        assert "-ar 8000" in caught.value.fix

    @pytest.mark.parametrize(
        "wrong",
        [
            *(b"", b"RIFF", b"no sound", wav(noise(50))[:-1], wav(noise(50))[:30], wav(noise(0)), 3, None, "none.wav"),
            *(wav(np.zeros(50), bits=8), wav(noise(50, 3)), Path("none.wav"), noise(0), noise(4, 3), np.zeros(4, int)),
            *(np.array([0, np.nan], np.float32), np.zeros((2, 2, 2), np.int16)),
        ],
    )
    def test_what_is_no_recording_is_named_in_one_line(self, wrong):
        with pytest.raises(BadInput) as caught:
            process().feed([wrong])
        assert "\n" not in caught.value.problem
        assert caught.value.fix

    def test_too_large_a_file_is_refused_before_it_is_read(self, tmp_path):
        with (tmp_path / "long.wav").open("wb") as file:
            file.truncate(MAX_BYTES + 1)
        with pytest.raises(BadInput, match="larger than"):
            decode(tmp_path / "long.wav", RATE)

    @given(st.integers(0, 10**6), st.integers(0, 63), st.binary(min_size=1, max_size=4))
    @settings(max_examples=150, deadline=None)
    def test_a_changed_file_is_a_recording_or_bad_input(self, cut, place, change):
        data = bytearray(wav(noise(20)))
        data[place : place + len(change)] = change
        data = data[: max(1, cut % (2 * len(data)))]
        try:
            found = decode(bytes(data), RATE)
        except BadInput:
            return
        assert found.ndim == 1
        assert np.isfinite(found).all()


class TestSpectrogram:
    def test_it_is_the_power_of_every_band_by_the_definition(self):
        x = decode(noise(200), RATE)
        window, hop, bands, floor = 32, 16, 5, 1e-6
        corners = 2595 * np.log10(1 + np.array([20.0, 4000.0]) / 700)
        hertz = 700 * (10 ** (np.linspace(*corners, bands + 2) / 2595) - 1)
        found = log_mel(x, window, hop, mel_filters(RATE, window, bands, 20.0, 4000.0), floor)
        assert found.shape == (1, bands, frames(200, window, hop))
        for frame in range(found.shape[2]):
            part = x[frame * hop : frame * hop + window].astype(np.float64)
            part = part * [0.5 - 0.5 * np.cos(2 * np.pi * n / window) for n in range(window)]
            for band in range(bands):
                power = 0.0
                for k in range(window // 2 + 1):
                    turned = sum(v * np.exp(-2j * np.pi * k * n / window) for n, v in enumerate(part))
                    height = np.interp(k * RATE / window, hertz[band : band + 3], [0, 1, 0])
                    power += height * abs(turned) ** 2
                assert found[0, band, frame] == pytest.approx(np.log(max(power, floor)), abs=1e-4)

    @given(st.integers(1, 30), st.sampled_from([64, 65, 256]))
    def test_neighbouring_bands_share_every_frequency_between_their_middles(self, bands, window):
        filters = mel_filters(RATE, window, bands, 20.0, 4000.0)
        assert filters.shape == (bands, window // 2 + 1)
        assert filters.min() >= 0
        corners = 2595 * np.log10(1 + np.array([20.0, 4000.0]) / 700)
        middles = (700 * (10 ** (np.linspace(*corners, bands + 2) / 2595) - 1))[1:-1]
        f = np.arange(window // 2 + 1) * RATE / window
        inside = (f >= middles[0]) & (f <= middles[-1])
        np.testing.assert_allclose(filters[:, inside].sum(0), 1, atol=1e-12)

    def test_a_tone_is_loudest_in_its_band_and_silence_is_the_floor(self):
        t = np.arange(RATE) / RATE
        filters = mel_filters(RATE, 256, 20, 20.0, 4000.0)
        for hertz in (200, 1000, 3000):
            found = log_mel(np.sin(2 * np.pi * hertz * t).astype(np.float32), 256, 128, filters, 1e-6)
            wanted = filters[:, round(hertz * 256 / RATE)].argmax()
            assert (found[0].argmax(0) == wanted).all()
        silence = log_mel(np.zeros(RATE, np.float32), 256, 128, filters, 1e-6)
        assert (silence == np.float32(np.log(1e-6))).all()

    @given(st.integers(1, 30), st.integers(1, 30))
    def test_every_length_ends_at_the_one_asked_for(self, have, want):
        x = np.arange(1, have + 1, dtype=np.float32)
        found = pad_or_trim(x, want)
        assert found.tolist() == [*x[:want].tolist(), *[0.0] * (want - have)]

    def test_the_tail_scales_it(self):
        plain, scaled = (
            process(operations).feed([noise(300)])["input_values"] for operations in (LIST, [*LIST, SCALE])
        )
        np.testing.assert_allclose(scaled, (plain + 4) / 3, rtol=1e-6)


def changed(number: int, **values: object) -> list[dict[str, object]]:
    return [{**operation, **values} if i == number else operation for i, operation in enumerate(LIST)]


@pytest.mark.parametrize(
    "operations",
    [
        *([], LIST[1:], LIST[:2], [LIST[0], LIST[2], LIST[1]], [*LIST[:3], LIST[2]], [LIST[0], *LIST]),
        *(changed(0, rate=0), changed(0, rate=16000), changed(1, samples=10), changed(1, samples=10**9)),
        *(changed(2, window=1.5), changed(2, hop=65), changed(2, bands=True), changed(2, low=5000)),
        *(changed(2, high=4001.0), changed(2, floor=0), changed(2, floor=float("nan")), changed(2, low=-1)),
        *(changed(2, more=1), [{"op": "decode", "mode": "L"}, {"op": "to_float"}]),
        *([*LIST, {**SCALE, "mean": [0.0, 0.0]}], [LIST[0], {"op": "channels_first"}, *LIST[1:]]),
        [*changed(1, samples=30_000_000)[:2], {**MEL, "hop": 1, "window": 64}],
    ],
)
def test_a_list_that_no_export_writes_is_refused(operations):
    with pytest.raises(Refused):
        process(operations)


@pytest.mark.parametrize("raw", [Raw("image"), Raw("text"), Raw("array", "float32", (400,))])
def test_only_recordings_are_decoded_as_such(raw):
    with pytest.raises(Refused):
        Preprocess(LIST, raw, ("input_values",), Path())

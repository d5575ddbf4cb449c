"""No silent wrong picture: modes beyond 8 bits, transparency, frames; against numpy and Pillow."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, TiffImagePlugin

from explainguide.cli.pictures import read_picture
from explainguide.datasets import ImageFolder
from explainguide.datasets.pictures import open_picture, read_header
from explainguide.errors import DataError, ExplainGuideWarning

RAMP = (np.arange(64 * 48).reshape(48, 64) * 21).astype(np.uint16)


def values(path: Path) -> np.ndarray:
    """What the reader gives, without a warning."""
    return np.asarray(open_picture(path, told=set())).astype(int)


def save_tiff(path: Path, array: np.ndarray, **tags: int) -> None:
    """A TIFF without compression, of any type of numbers, written tag by tag."""
    kinds = {"u": 1, "i": 2, "f": 3}
    info = TiffImagePlugin.ImageFileDirectory_v2()
    bits = array.dtype.itemsize * 8
    entries = {256: array.shape[1], 257: array.shape[0], 258: tags.get("bits", bits), 259: 1}
    entries |= {262: tags.get("photometric", 1), 273: 8, 277: 1, 278: array.shape[0]}
    entries |= {279: array.nbytes, 339: kinds[array.dtype.kind]}
    if "orientation" in tags:
        entries[274] = tags["orientation"]
    for tag, value in entries.items():
        info[tag] = value
        info.tagtype[tag] = 4 if tag in (273, 279) else 3
    little = array.astype(array.dtype.newbyteorder("<")).tobytes()
    directory = b"".join(
        int(tag).to_bytes(2, "little")
        + (4).to_bytes(2, "little")
        + (1).to_bytes(4, "little")
        + int(value).to_bytes(4, "little")
        for tag, value in sorted(entries.items())
    )
    head = b"II*\0" + (8 + len(little)).to_bytes(4, "little")
    path.write_bytes(head + little + len(entries).to_bytes(2, "little") + directory + b"\0\0\0\0")


def test_16_bit_greys_are_scaled_by_their_range(tmp_path: Path) -> None:
    expected = np.round(RAMP / 257)
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    save_tiff(tmp_path / "c.tif", RAMP)
    Image.frombytes("I;16B", (64, 48), RAMP.astype(">u2").tobytes()).save(tmp_path / "d.tif")
    (tmp_path / "e.pgm").write_bytes(b"P5 64 48 65535\n" + RAMP.astype(">u2").tobytes())
    for path in sorted(tmp_path.iterdir()):
        found = values(path)
        assert found.shape == (48, 64, 3)
        assert np.array_equal(found, np.repeat(expected[:, :, None], 3, 2)), path.name
    save_tiff(tmp_path / "white_is_zero.tif", RAMP, photometric=0)
    assert np.array_equal(
        values(tmp_path / "white_is_zero.tif")[..., 0], np.round(255 - RAMP / 257)
    )


def test_16_bit_colours_are_scaled_by_their_range(tmp_path: Path) -> None:
    colours = np.stack([RAMP, 65535 - RAMP, RAMP // 2], axis=2)
    path = tmp_path / "a.ppm"
    path.write_bytes(b"P6 64 48 65535\n" + colours.astype(">u2").tobytes())
    assert abs(values(path) - colours / 257).max() <= 1


def test_12_bits_of_a_tiff_have_4095_for_white(tmp_path: Path) -> None:
    samples = np.array([[0, 4095], [2048, 1]])
    packed = bytes([0x00, 0x0F, 0xFF, 0x80, 0x00, 0x01])  # two samples in three bytes
    save_tiff(tmp_path / "a.tif", np.frombuffer(packed, np.uint8).reshape(2, 3), bits=12)
    raw = bytearray((tmp_path / "a.tif").read_bytes())
    width_entry = raw.index((256).to_bytes(2, "little"), 8 + 6)
    raw[width_entry + 8 : width_entry + 12] = (2).to_bytes(4, "little")
    (tmp_path / "a.tif").write_bytes(raw)
    with Image.open(tmp_path / "a.tif") as file:
        assert file.mode == "I;16"
    assert np.array_equal(values(tmp_path / "a.tif")[..., 0], np.round(samples / 4095 * 255))


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.uint32, np.int16, np.int8])
def test_whole_numbers_of_8_bits_stay_in_any_type(tmp_path: Path, dtype: Any) -> None:
    array = (np.arange(120).reshape(10, 12)).astype(dtype)
    save_tiff(tmp_path / "a.tif", array)
    assert np.array_equal(values(tmp_path / "a.tif")[..., 1], array)


def test_floats_from_0_to_1(tmp_path: Path) -> None:
    share = np.linspace(0, 1, 120, dtype=np.float32).reshape(10, 12)
    Image.fromarray(share).save(tmp_path / "a.tif")
    assert np.array_equal(values(tmp_path / "a.tif")[..., 2], np.round(share * 255))
    save_tiff(tmp_path / "b.tif", share, photometric=0)
    assert abs(values(tmp_path / "b.tif")[..., 2] - (1 - share) * 255).max() <= 0.51


@pytest.mark.parametrize(
    ("array", "what"),
    [
        (np.array([[-1000, 3000]], np.float32), r"floats from -1000 to 3000, of which black"),
        (np.array([[0, 1.5]], np.float32), r"floats from 0 to 1\.5"),
        (np.array([[0, np.nan]], np.float32), r"floats from nan to nan"),
        (np.array([[0, np.inf]], np.float32), r"floats from 0 to inf"),
        (np.array([[0, 60000]], np.int32), r"signed or 32-bit integers from 0 to 60000"),
        (np.array([[0, 2**32 - 1]], np.uint32), r"signed or 32-bit integers from -1 to 0"),
        (np.array([[-5, 200]], np.int16), r"signed or 32-bit integers from -5 to 200"),
        (np.array([[-5, 100]], np.int8), r"signed or 32-bit integers from -5 to 100"),
    ],
)
def test_numbers_without_a_known_white_are_refused(
    tmp_path: Path, array: np.ndarray, what: str
) -> None:
    path = tmp_path / "a.tif"
    save_tiff(path, array)
    text = rf"^'.*a\.tif' is a picture of {what}.*Save it with 8 or 16 bits, or as floats in"
    with pytest.raises(DataError, match=text):
        open_picture(path, told=set())
    with pytest.raises(DataError, match=r"^'.*a\.tif' is a picture of"):
        read_picture(str(path), told=set())
    (tmp_path / "photos" / "x").mkdir(parents=True)
    path.rename(tmp_path / "photos" / "x" / "a.tif")
    with pytest.raises(DataError, match=r"^ImageFolder: '.*a\.tif' is a picture of"):
        ImageFolder(tmp_path / "photos")[0]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK"])
def test_8_bit_modes_are_pillows(tmp_path: Path, mode: str) -> None:
    colours = np.stack([RAMP // 257, RAMP // 300, 255 - RAMP // 257], axis=2).astype(np.uint8)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.fromarray(colours).convert(mode).save(path)
    assert np.array_equal(values(path), np.asarray(Image.open(path).convert("RGB")))


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P", "RGB", "L"])
def test_transparent_pixels_are_laid_on_white_and_told_once(tmp_path: Path, mode: str) -> None:
    rgba = np.zeros((4, 6, 4), np.uint8)
    rgba[:, :, :3] = 40
    rgba[:, :, 3] = 255
    rgba[:2, :, 3] = [0, 51, 102, 153, 204, 255] if mode in ("LA", "RGBA") else 0
    path = tmp_path / "a.png"
    if mode in ("LA", "RGBA"):
        Image.fromarray(rgba).convert(mode).save(path)
    else:
        rgba[:2, :, :3] = 90
        picture = Image.fromarray(rgba[:, :, :3].copy())
        picture = picture.quantize(4) if mode == "P" else picture.convert(mode)
        key: Any = (90, 90, 90) if mode == "RGB" else picture.getpixel((0, 0))
        picture.save(path, transparency=key)
    alpha = rgba[:, :, 3:] / 255
    expected = rgba[:, :, :3] * alpha + 255 * (1 - alpha)
    told: set[str] = set()
    said = r"^'.*a\.png' has transparent pixels, which are laid on white\."
    with pytest.warns(ExplainGuideWarning, match=said) as caught:
        found = np.asarray(open_picture(path, told=told))
    assert [w.filename for w in caught] == [__file__]
    assert abs(found - expected).max() <= 1
    open_picture(path, told=told)  # not again
    Image.fromarray(np.full((4, 6, 4), 255, np.uint8)).save(tmp_path / "opaque.png")
    assert (values(tmp_path / "opaque.png") == 255).all()


@pytest.mark.parametrize("ending", ["gif", "png", "tif", "webp"])
def test_the_first_of_several_frames_is_taken_and_told_once(tmp_path: Path, ending: str) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")]
    path = tmp_path / f"a.{ending}"
    kwargs: dict[str, Any] = {"lossless": True} if ending == "webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], **kwargs)
    told: set[str] = set()
    with pytest.warns(ExplainGuideWarning, match=r"^'.*' holds several frames; the first is"):
        found = np.asarray(open_picture(path, told=told))
    assert (found == [255, 0, 0]).all()
    open_picture(path, told=told)


def test_data_sets_and_explain_give_the_same_pixels(photos: Path) -> None:
    path = photos / "cat" / "a.png"
    Image.fromarray(RAMP[:30, :40]).save(path)
    data = ImageFolder(photos)
    explained = np.asarray(read_picture(str(path), told=set()))
    assert np.array_equal((data[0][0] * 255).round().permute(1, 2, 0).numpy(), explained)
    assert (data[0][0] == 1).float().mean() < 0.01
    assert torch.allclose(
        data[0][0][0], torch.from_numpy(RAMP[:30, :40] / 65535).float(), atol=0.003
    )


def test_a_data_set_says_it_once(photos: Path) -> None:
    for path in (photos / "cat").iterdir():
        Image.new("RGBA", (40, 30), (0, 0, 0, 0)).save(path)
    data = ImageFolder(photos)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        images = [data[0][0], data[1][0]]
    assert [type(w.message) for w in caught] == [ExplainGuideWarning]
    assert caught[0].filename == __file__
    assert all((image == 1).all() for image in images)


def test_header_of_what_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no picture")
    assert read_header(tmp_path / "a.png") is None
    assert read_header(tmp_path / "absent.png") is None

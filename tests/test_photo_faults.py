"""Photographs that are damaged, unusual, enormous or none at all: each is read rightly or named with its remedy."""

from __future__ import annotations

import io
import os
import random
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from conftest import shared_data
from manihot.errors import SettingsError
from manihot.photos import depth, limits
from manihot.photos.decode import PhotoFault, decode_photo, inspect_photo, inspect_photos
from manihot.photos.headers import read_jpeg_head
from manihot.photos.jpeg_data import walk_scans
from test_decode import JPEGS, encode, exif, fault_of, picture, textured

# ------------------------------------------------------------------------------------- cut and filled JPEGs

FILLINGS = {
    "zeros": b"\0",
    "ones": b"\xff",
    "0x55": b"\x55",
    "two bytes": b"\xaa\x55",
    "stuffed": b"\xff\0",
    "four bytes": b"\xde\xad\xbe\xef",
    "text": b"nothing to see ",
    "random": b"",
}


def judge(path: Path, raw: bytes) -> str:
    """'whole', or the kind of the fault that the scan finds."""
    path.write_bytes(raw)
    found = inspect_photos([path])[0]
    return found.kind if isinstance(found, PhotoFault) else "whole"


def cut_and_fill(raw: bytes, at: int, filling: bytes, length: int | None = None) -> bytes:
    """A JPEG up to `at`, then a filling up to its old size, or of `length`, then an end marker."""
    length = len(raw) - at - 2 if length is None else length
    fill = (filling * length)[:length] if filling else random.Random(at).randbytes(length)
    return raw[:at] + fill + b"\xff\xd9"


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("filling", FILLINGS)
def test_a_cut_jpeg_is_damaged_whatever_fills_it(tmp_path: Path, filling: str, kind: str, capfd) -> None:
    raw = encode(textured(), **JPEGS[kind])
    start = read_jpeg_head(raw).scan
    found = {}
    for share in (0.02, 0.3, 0.5, 0.7, 0.93):
        at = start + int(share * (len(raw) - start))
        for length in (None, 2 * (len(raw) - at)):
            found[share, length] = judge(tmp_path / "x.jpg", cut_and_fill(raw, at, FILLINGS[filling], length))
    assert set(found.values()) == {"damaged"}, found
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kind", ["progressive", "non-interleaved"])
def test_missing_scans_are_damage(tmp_path: Path, kind: str) -> None:
    """Each scan is whole, so that no decoder complains."""
    raw = encode(textured(), progressive=True) if kind == "progressive" else non_interleaved()
    head = read_jpeg_head(raw)
    marks = [k for k in range(len(raw)) if raw.startswith(b"\xff\xda", k)]
    assert len(marks) == len(walk_scans(raw, head)) == (10 if kind == "progressive" else 3)
    assert judge(tmp_path / "x.jpg", raw) == "whole"
    tables = [raw.rindex(b"\xff\xc4", 0, mark) if kind == "progressive" else mark for mark in marks]
    for at in tables[1:]:
        assert judge(tmp_path / "x.jpg", raw[:at] + b"\xff\xd9") == "damaged"
        assert judge(tmp_path / "x.jpg", raw[:at]) == "truncated"


def non_interleaved() -> bytes:
    """A baseline JPEG in three scans, joined from three grey ones."""
    rgb = textured()
    parts = [encode(rgb[..., k], mode="L", quality=90) for k in range(3)]
    heads = [read_jpeg_head(part) for part in parts]
    frame = b"\xff\xc0" + struct.pack(">HBHHB", 17, 8, *rgb.shape[:2], 3) + b"\1\x11\0\2\x11\0\3\x11\0"
    bare = heads[0].bare
    at = bare.index(b"\xff\xc0")
    raw = bare[:at] + frame + bare[at + 2 + int.from_bytes(bare[at + 2 : at + 4], "big") :]
    for k, (part, head) in enumerate(zip(parts, heads)):
        raw += b"\xff\xda" + struct.pack(">HB", 8, 1) + bytes([k + 1, 0, 0, 63, 0]) + part[head.scan : -2]
    return raw + b"\xff\xd9"


@pytest.mark.parametrize("kind", JPEGS)
def test_a_whole_jpeg_is_whole_whatever_stands_behind_or_is_missing(tmp_path: Path, kind: str) -> None:
    raw = encode(textured(), **JPEGS[kind])
    expected = decode_photo(raw)
    small = encode(picture(60, 80))
    whole = {
        "no end marker": raw[:-2],
        "half an end marker": raw[:-1],
        "zeros instead of an end marker": raw[:-2] + bytes(5000),
        "zeros before the end marker": raw[:-2] + bytes(5000) + b"\xff\xd9",
        "one byte before the end marker": raw[:-2] + b"x\xff\xd9",
        "zeros behind": raw + bytes(5000),
        "0xff behind": raw + b"\xff" * 5000,
        "a second picture behind (MPF)": raw + small,
        "a maker's data behind (Samsung)": raw + b"\0\0\1\x0a\x0e\0\0\0Image_UTC_Data1" + bytes(99) + b"SEFT",
        "a video behind (motion photo)": raw + struct.pack(">I", 24) + b"ftypmp42" + random.Random(0).randbytes(5000),
    }
    for name, data in whole.items():
        assert judge(tmp_path / "x.jpg", data) == "whole", name
        np.testing.assert_array_equal(decode_photo(data), expected, name)


@pytest.mark.parametrize("flat", [0, 128, 255])
@pytest.mark.parametrize("progressive", [False, True])
def test_flat_pictures_whose_data_are_like_a_filling_are_whole(tmp_path: Path, flat: int, progressive: bool) -> None:
    grey = np.full((300, 400, 3), flat, np.uint8)
    grey[:40] = textured()[:40, :, :].repeat(2, axis=1)[:, :400]
    for options in ({}, {"optimize": True}, {"restart_marker_blocks": 16}):
        raw = encode(grey, progressive=progressive, **options)
        assert judge(tmp_path / "x.jpg", raw) == judge(tmp_path / "x.jpg", raw[:-2]) == "whole"


def test_remarks_on_metadata_hide_no_filling(tmp_path: Path) -> None:
    """libjpeg tells its first remark only; this one is on the version of JFIF, that one on the scan's header."""
    raw = encode(textured(), quality=95)
    cut = cut_and_fill(raw, len(raw) // 2, b"\x55", 3 * len(raw))
    assert judge(tmp_path / "x.jpg", cut.replace(b"JFIF\0\1\1", b"JFIF\0\7\1", 1)) == "damaged"
    scan = read_jpeg_head(cut).scan
    assert judge(tmp_path / "x.jpg", cut[: scan - 3] + b"\0\0\0" + cut[scan:]) == "damaged"
    frame = cut.index(b"\xff\xdb")
    assert judge(tmp_path / "x.jpg", cut[:frame] + b"stray bytes" + cut[frame:]) == "damaged"
    whole = raw[:frame] + b"stray bytes" + raw[frame:]
    assert judge(tmp_path / "x.jpg", whole) == "whole"


SMALLER = {"WEBP": {"quality": 80}, "WEBP lossless": {"lossless": True}, "AVIF": {"speed": 10, "quality": 70}}


@pytest.mark.parametrize("kind", SMALLER)
def test_a_cut_webp_or_avif_is_no_photograph_whatever_pattern_fills_it(tmp_path: Path, kind: str) -> None:
    tags = exif(1)
    tags[0x9286] = bytes(600)  # a comment of zeros, at the end of a WebP
    raw = encode(textured(), kind.split()[0], exif=tags, **SMALLER[kind])
    assert judge(tmp_path / "x.webp", raw) == "whole"
    for share in (0.3, 0.5, 0.8):
        cut = int(share * len(raw))
        for pattern in (b"\0", b"\xff", b"ab", b"nothing to see "):
            filled = raw[:cut] + (pattern * len(raw))[: len(raw) - cut]
            assert judge(tmp_path / "x.webp", filled) in ("damaged", "unreadable"), (share, pattern)


@pytest.mark.parametrize("kind", SMALLER)
def test_flat_webp_and_avif_are_whole(tmp_path: Path, kind: str) -> None:
    for colour in (0, 255):
        rgb = np.full((1500, 2000, 3), colour, np.uint8)
        assert judge(tmp_path / "x.webp", encode(rgb, kind.split()[0], **SMALLER[kind])) == "whole"
        rgb[:40] = np.random.default_rng(0).integers(0, 256, (40, 2000, 3))
        assert judge(tmp_path / "x.webp", encode(rgb, kind.split()[0], **SMALLER[kind])) == "whole"


def test_another_photograph_in_the_second_half_is_damage(tmp_path: Path) -> None:
    raw = encode(textured())
    assert judge(tmp_path / "x.jpg", raw[: len(raw) // 2] + encode(picture(90, 90))) == "damaged"


@pytest.mark.slow
def test_no_real_photograph_is_taken_for_damaged_and_cut_ones_are() -> None:
    paths = sorted(shared_data("bracol/leaf").glob("*.jpg"))
    assert [found for found in inspect_photos(paths) if isinstance(found, PhotoFault)] == []
    rng = random.Random(0)
    where = Path(os.environ.get("TMPDIR", "/tmp")) / f"cut-{os.getpid()}.jpg"
    kinds = ["whole"] * 800
    for k in range(len(kinds)):
        raw = rng.choice(paths).read_bytes()
        if k % 2:
            options = rng.choice([{"progressive": True}, {"optimize": True}, {"restart_marker_blocks": 8}])
            raw = encode(decode_photo(raw), quality=rng.choice([75, 92]), **options)
        at = rng.randrange(read_jpeg_head(raw).scan + 50, len(raw) - 60)
        kinds[k] = judge(where, cut_and_fill(raw, at, rng.choice(list(FILLINGS.values()))))
    where.unlink()
    assert kinds.count("damaged") >= 0.99 * len(kinds)


# ------------------------------------------------------------------------------------------- unusual depth


def save(values: np.ndarray, kind: str = "TIFF", **options: object) -> bytes:
    """Grey values of any type through Pillow, three channels through opencv."""
    if values.ndim == 3:
        order = [2, 1, 0, 3][: values.shape[2]]
        suffix = {"PNG": ".png", "TIFF": ".tiff"}[kind]
        return cv2.imencode(suffix, np.ascontiguousarray(values[..., order]))[1].tobytes()
    out = io.BytesIO()
    Image.fromarray(values).save(out, kind, **options)
    return out.getvalue()


RAMP = np.linspace(0, 1, 60 * 80).reshape(60, 80)
EIGHT = np.round(RAMP * 255)


def test_a_portable_map_whose_maximum_is_its_containers_is_scaled_by_its_bits() -> None:
    for bits in (8, 10, 12, 14, 16):
        values = np.round(RAMP * (2**bits - 1)).astype(">u2")
        grey = decode_photo(b"P5\n# a camera\n80 60 # wide\n65535\n" + values.tobytes())
        assert np.abs(grey[..., 0].astype(float) - RAMP * 255).max() <= 1
    dark = np.dstack([np.round(RAMP * 255)] * 3).astype(">u2")
    with pytest.raises(PhotoFault, match="use the lower ones only"):
        decode_photo(b"P6\n80 60\n65535\n" + dark.tobytes())
    full = decode_photo(b"P6\n80 60\n65535\n" + (dark * 257).astype(">u2").tobytes())
    assert np.abs(full[..., 0].astype(float) - RAMP * 255).max() <= 1


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "int32", "float", "RGB PNG", "RGBA PNG", "RGB TIFF", "packed"])
def test_fewer_bits_than_the_file_has_are_scaled(bits: int, kind: str) -> None:
    values = np.round(RAMP * (2**bits - 1)).astype(np.uint16)
    if kind in ("int32", "float"):
        raw = save(values.astype(np.int32 if kind == "int32" else np.float32))
    elif kind == "packed":
        raw = save(values, "TIFF", compression="tiff_deflate")
    elif kind.startswith("RGB"):
        full = [np.full_like(values, 65535)] if "A" in kind else []
        raw = save(np.dstack([values, values // 2, values // 4, *full]), kind.split()[1])
    else:
        raw = save(values, kind)
    out = decode_photo(raw).astype(int)
    assert np.abs(out[..., 0] - EIGHT).max() <= 1
    assert np.abs(out[..., 2] - EIGHT // (4 if kind.startswith("RGB") else 1)).max() <= 1


def test_what_tags_say_is_white() -> None:
    values = np.round(RAMP * 2000).astype(np.uint16)
    assert np.abs(decode_photo(save(values, tiffinfo={341: 2000}))[..., 0] - EIGHT).max() <= 1
    assert np.abs(decode_photo(save(values, tiffinfo={281: 4000}))[..., 0] - EIGHT / 2).max() <= 1
    # What a file of 16 bits can hold says nothing; 2000 takes 11 bits, so 4095 is white.
    assert decode_photo(save(values, tiffinfo={281: 65535})).max() == 125
    dark = b"P5\n80 60\n4095\n" + np.round(RAMP * 400).astype(">u2").tobytes()
    assert decode_photo(dark).max() == 25
    twelve = tiff(80, 60, 1, 12, pack12(np.round(RAMP * 4095).astype(int)))
    assert np.abs(decode_photo(twelve)[..., 0] - EIGHT).max() <= 1
    white_is_zero = tiff(80, 60, 1, 16, np.round(RAMP * 65535).astype("<u2").tobytes(), photometric=0)
    assert np.abs(decode_photo(white_is_zero)[..., 0] - (255 - EIGHT)).max() <= 1


def test_numbers_from_0_to_1_and_to_255_are_scaled() -> None:
    assert np.abs(decode_photo(save(RAMP.astype(np.float32)))[..., 0] - EIGHT).max() <= 1
    assert np.abs(decode_photo(save((RAMP * 254.6).astype(np.float32)))[..., 0] - EIGHT).max() <= 1


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((RAMP * 9).astype(np.uint16), "reach 9 only: a mask"),
        (np.zeros((9, 9), np.uint16), "reach 0 only"),
        ((RAMP * 100 - 50).astype(np.int32), "below zero (from -50 to 50)"),
        ((RAMP * 1e6).astype(np.int32), "from 0 to 1e+06"),
        ((RAMP * 9.3).astype(np.float32), "fractions from 0 to 9.3"),
        ((RAMP * 0.01).astype(np.float32), "fractions from 0 to 0.01"),
        (np.full((9, 9), np.nan, np.float32), "infinite or none"),
        (np.dstack([(RAMP * 9).astype(np.uint16)] * 3), "reach 9 only"),
    ],
)
def test_what_white_is_and_cant_be_told_is_a_fault(values: np.ndarray, words: str) -> None:
    found = fault_of(save(values, "TIFF" if values.ndim == 2 else "PNG"))
    assert found.kind == "unsupported" and words in found.detail and "8-bit" in found.remedy


def test_a_hot_pixel_makes_no_black_photograph() -> None:
    values = np.round(RAMP * 1000).astype(np.uint16)
    values[3, 3] = 65535
    assert "hardly any" in fault_of(save(values, "PNG")).detail
    assert "hardly any" in fault_of(save(np.dstack([values] * 3), "PNG")).detail


def test_large_pictures_come_in_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    rgba = np.dstack([picture(), np.arange(120, dtype=np.uint8)[:, None].repeat(161, 1)])
    deep = np.dstack([picture()[..., :3].astype(np.uint16) * 16] * 1)
    files = [
        encode(rgba, "PNG", "RGBA"),
        encode(picture(), "TIFF", "CMYK"),
        encode(picture(), "PNG", "P"),
        save(np.round(RAMP * 4095).astype(np.uint16)),
        save(deep, "PNG"),
        encode(picture(), "WEBP", lossless=True),
    ]
    whole = [decode_photo(raw) for raw in files]
    monkeypatch.setattr(depth, "BAND", 500)
    for raw, expected in zip(files, whole):
        np.testing.assert_array_equal(decode_photo(raw), expected)


# --------------------------------------------------------------------------------------- what a file is instead


def tiff(
    width: int, height: int, channels: int, bits: int, data: bytes = b"", sample_format: int = 1, photometric: int = 1
) -> bytes:
    """A TIFF in one uncompressed strip."""
    data = data or bytes(width * height * channels * bits // 8)
    depths = struct.pack(f"<{channels}H", *[bits] * channels)
    start = 8 + 2 + 12 * 10 + 4
    places = start if channels > 2 else int.from_bytes(depths, "little")
    rows = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, channels, places),
        (259, 3, 1, 1),
        (262, 3, 1, photometric),
        (273, 4, 1, start + len(depths)),
        (277, 3, 1, channels),
        (278, 4, 1, height),
        (279, 4, 1, len(data)),
        (339, 3, 1, sample_format),
    ]
    return (
        b"II*\0"
        + struct.pack("<IH", 8, len(rows))
        + b"".join(struct.pack("<HHII", *row) for row in rows)
        + bytes(4)
        + depths
        + data
    )


def pack12(values: np.ndarray) -> bytes:
    """Numbers of 12 bits, two in three bytes, as TIFF packs them."""
    first, second = values.ravel()[::2], values.ravel()[1::2]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=1)
    return packed.astype(np.uint8).tobytes()


def box(kind: bytes, brand: bytes) -> bytes:
    return struct.pack(">I", 24) + b"ftyp" + brand + bytes(4) + kind + brand + bytes(200)


OTHERS = {
    "5 bands": (tiff(9, 9, 5, 8), "unsupported", "5 channels of 8 bits", "save it as JPEG"),
    "2 bands of 16 bits": (tiff(9, 9, 2, 16), "unsupported", "2 channels of 16 bits", "save it as JPEG"),
    "14 bits": (tiff(16, 9, 1, 14), "unsupported", "1 channel of 14 bits", "save it as JPEG"),
    "float RGB": (save(np.ones((9, 9, 3), np.float32)), "unsupported", "floating-point numbers, RGB", "JPEG"),
    "double": (tiff(9, 9, 1, 64, sample_format=3), "unsupported", "64 bits, floating-point", "JPEG"),
    "a cut TIFF of 5 bands": (tiff(9, 9, 5, 8)[:300], "truncated", "TIFF", "copy the file again"),
    "git-annex": (b"/annex/objects/SHA256E-s9--0.jpg\n", "not_an_image", "git-annex pointer", "git annex get"),
    "Git LFS": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "not_an_image",
        "Git LFS pointer",
        "git lfs pull",
    ),
    "web page": (b"<!DOCTYPE html><html>404</html>", "not_an_image", "web page", "download"),
    "error of a store": (
        b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
        "not_an_image",
        "XML",
        "download",
    ),
    "JSON": (b'{"error": "not found"}', "not_an_image", 'a text, which begins \'{"error"', "download"),
    "drawing": (b"<?xml version='1.0'?>\n<svg xmlns='x'></svg>", "unsupported", "drawing (SVG)", "save it as"),
    "base64": (b"/9j/4AAQSkZJRgABAQ", "not_an_image", "base64", "decode"),
    "AppleDouble": (b"\0\x05\x16\x07\0\2\0\0Mac OS X" + bytes(99), "not_an_image", "AppleDouble", "leading '._'"),
    "zip": (b"PK\x03\x04" + bytes(99), "not_an_image", "zip", "unpack"),
    "video": (box(b"isom", b"mp42"), "not_an_image", "video (MP4", "ffmpeg"),
    "QuickTime": (box(b"qt  ", b"qt  "), "not_an_image", "video", "ffmpeg"),
    "AVI": (b"RIFF\0\0\0\0AVI LIST", "not_an_image", "video (AVI)", "ffmpeg"),
    "Matroska": (b"\x1aE\xdf\xa3" + bytes(99), "not_an_image", "video", "ffmpeg"),
    "CR2": (b"II*\0\x10\0\0\0CR\2\0" + bytes(99), "unsupported", "raw file of a camera (Canon", "develop"),
    "CR3": (box(b"isom", b"crx "), "unsupported", "raw file of a camera", "develop"),
    "RAF": (b"FUJIFILMCCD-RAW 0201" + bytes(99), "unsupported", "raw file of a camera", "develop"),
    "JPEG XL": (b"\xff\x0a" + bytes(99), "unsupported", "JPEG XL", "save it as"),
    "Photoshop": (b"8BPS\0\1" + bytes(99), "unsupported", "Photoshop", "save it as"),
    "PDF": (b"%PDF-1.4\n", "not_an_image", "PDF", "save"),
    "shortcut": (b"L\0\0\0\x01\x14\x02\0" + bytes(99), "not_an_image", "shortcut", "copy the file"),
    "empty": (b"", "empty", "0 bytes", "copy the file again"),
    "zeros": (bytes(999), "empty", "contains only zeros", "copy the file again"),
    "zeros, then a photograph": (bytes(4096) + encode(textured())[4096:], "damaged", "beginning is filled", "copy"),
    "12-bit JPEG": (
        encode(picture()).replace(b"\xff\xc0\0\x11\x08", b"\xff\xc1\0\x11\x0c"),
        "unsupported",
        "a JPEG of 12 bits",
        "save it as",
    ),
    "lossless JPEG": (
        encode(picture()).replace(b"\xff\xc0\0\x11", b"\xff\xc3\0\x11"),
        "unsupported",
        "without loss",
        "save it as",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_file_that_is_something_else_is_named_with_its_remedy(tmp_path: Path, name: str) -> None:
    raw, kind, words, remedy = OTHERS[name]
    found = fault_of(raw)
    assert (found.kind, words in found.detail, remedy in found.remedy) == (kind, True, True), found
    assert judge(tmp_path / "x.jpg", raw) == kind


def test_libtiffs_words_go_to_the_fault_and_not_to_the_terminal(tmp_path: Path, capfd) -> None:
    raw = bytearray(encode(textured(), "TIFF", compression="tiff_lzw"))
    raw[2000:9000] = random.Random(0).randbytes(7000)
    (tmp_path / "hurt.tif").write_bytes(raw)
    with pytest.raises(PhotoFault) as caught:
        inspect_photo(tmp_path / "hurt.tif")
    assert "Using code not yet in table" in caught.value.detail and capfd.readouterr().err == ""
    unsorted = bytearray(tiff(8, 8, 3, 8, photometric=2))
    first, second = unsorted[10:22], unsorted[22:34]
    unsorted[10:34] = second + first
    packed = unsorted.replace(struct.pack("<HHII", 259, 3, 1, 1), struct.pack("<HHII", 259, 3, 1, 8))
    for data in (unsorted, packed):
        (tmp_path / "odd.tif").write_bytes(data)
        inspect_photos([tmp_path / "odd.tif"])
    assert capfd.readouterr().err == ""


# ---------------------------------------------------------------------------------------------- enormous ones


def grey_png(width: int, height: int, cut: int | None = None) -> bytes:
    """A flat PNG of one byte a pixel."""
    packer = zlib.compressobj(1)
    row = bytes(width + 1)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [b"IHDR" + head, b"IDAT" + data, b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks
    )


def repeat_last_scan(raw: bytes, times: int) -> bytes:
    """A progressive JPEG with its last scan written again and again."""
    at = raw.rindex(b"\xff\xda")
    return raw[:-2] + raw[at:-2] * times + b"\xff\xd9"


def test_hundreds_of_scans_are_refused_before_decoding(tmp_path: Path) -> None:
    grey = Image.new("RGB", (4000, 4000), (90, 120, 60))
    out = io.BytesIO()
    grey.save(out, "JPEG", progressive=True)
    raw = out.getvalue()
    assert judge(tmp_path / "x.jpg", raw) == "whole"
    started = time.process_time()
    found = fault_of(repeat_last_scan(raw, 300))
    assert found.kind == "too_large" and "310 scans" in found.detail and "16 megapixels" in found.detail
    small = repeat_last_scan(encode(textured(), progressive=True), 300)
    assert decode_photo(small).shape == (240, 320, 3)  # 310 scans of a small picture take no time
    many = fault_of(repeat_last_scan(encode(picture(16, 16), progressive=True), 4000))
    assert "more than 1000 scans" in many.detail
    cmyk = fault_of(repeat_last_scan(encode(np.zeros((3000, 3000, 3), np.uint8), mode="CMYK", progressive=True), 500))
    assert cmyk.kind == "too_large"
    assert time.process_time() - started < 3


def head_of_webp(width: int, height: int) -> bytes:
    bits = (width - 1) | (height - 1) << 14
    data = b"\x2f" + struct.pack("<I", bits) + bytes(20)
    chunk = b"VP8L" + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (grey_png(6000, 5000), "pixels a byte, which no photograph has"),
        (grey_png(6000, 5000) + bytes(40_000_000), None),
        (
            b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR"
            + struct.pack(">IIBBBBB", 13000, 13000, 8, 2, 0, 0, 0)
            + struct.pack(">I", zlib.crc32(b"IHDR" + struct.pack(">IIBBBBB", 13000, 13000, 8, 2, 0, 0, 0)))
            + b"\0\0\0\0IDAT\x35\xaf\x06\x1e",
            "limit of 100 megapixels for PNG",
        ),
        (head_of_webp(16000, 11000), "limit of 44 megapixels for WEBP"),
        (
            b"GIF89a"
            + struct.pack("<HH", 13000, 13000)
            + b"\0\0\0,\0\0\0\0"
            + struct.pack("<HH", 13000, 13000)
            + b"\0\2\0;",
            "limit of 100 megapixels for GIF",
        ),
        (
            b"BM" + struct.pack("<IHHIIiiHHIIiiII", 99, 0, 0, 54, 40, 13000, 13000, 1, 24, 0, 0, 0, 0, 0, 0),
            "limit of 100 megapixels for BMP",
        ),
        (tiff(13000, 13000, 3, 8, bytes(99), photometric=2), "limit of 100 megapixels for TIFF"),
    ],
    ids=["sparse PNG", "PNG of enough bytes", "PNG", "WebP", "GIF", "BMP", "TIFF"],
)
def test_bombs_of_every_format_are_refused_from_their_heads(tmp_path: Path, raw: bytes, words: str | None) -> None:
    if words is None:
        assert judge(tmp_path / "x.jpg", raw) == "whole"
        return
    found = fault_of(raw)
    assert found.kind == "too_large" and words in found.detail and limits.RAISED in found.remedy
    assert judge(tmp_path / "x.jpg", raw) == "too_large"


def test_the_user_raises_and_lowers_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = grey_png(6000, 5000)
    assert judge(tmp_path / "x.png", raw) == "too_large"
    monkeypatch.setenv(limits.RAISED, "30")
    assert judge(tmp_path / "x.png", raw) == "whole" and decode_photo(raw).shape == (5000, 6000, 3)
    monkeypatch.setenv(limits.RAISED, "29.9")
    assert "limit of 29.9 megapixels" in fault_of(raw).detail
    monkeypatch.setenv(limits.RAISED, "many")
    with pytest.raises(SettingsError, match="MANIHOT_MAX_MEGAPIXELS='many' is not a number"):
        decode_photo(raw)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the largest memory of a process")
def test_a_scan_of_the_largest_pictures_takes_less_than_a_gigabyte(tmp_path: Path) -> None:
    """Each format just below its limit, with bytes behind so that it isn't too sparse; the scan and a full decode."""
    for kind in ("PNG", "WEBP", "TIFF", "GIF", "BMP", "JPEG2000", "AVIF"):
        most = min(limits.MAX_PIXELS, limits.MEMORY // limits.BYTES_A_PIXEL.get(kind, limits.BYTES_A_PIXEL_ELSE))
        most = min(most, int((limits.MEMORY + limits.LIGHT) / 11.1)) if kind == "BMP" else most  # 3 bytes per pixel
        edge = min(int(most**0.5), 16383)
        options = {"WEBP": {"lossless": True}, "TIFF": {"compression": "tiff_deflate"}, "AVIF": {"speed": 10}}
        Image.new("RGB", (edge, edge), (9, 99, 9)).save(tmp_path / f"{kind}.jpg", kind, **options.get(kind, {}))
        with open(tmp_path / f"{kind}.jpg", "ab") as file:
            file.truncate(max(file.tell(), edge * edge // limits.SPARSE + 1))
    code = (
        "import sys; from pathlib import Path; from manihot.photos.decode import *\n"
        "for path in map(Path, sys.argv[1:]):\n"
        "    facts = inspect_photos([path])[0]; assert isinstance(facts, PhotoFacts), (path, facts)\n"
        "    decode_photo(path)\n"
        "    print(path.name, open('/proc/self/status').read().split('VmHWM:')[1].split()[0], flush=True)\n"
    )
    for path in sorted(tmp_path.iterdir()):
        done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert int(done.stdout.split()[-1]) * 1024 < 1_000_000_000, done.stdout

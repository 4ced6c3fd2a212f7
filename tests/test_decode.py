"""Decoding: one picture whatever the container, and a named fault for whatever can't be read."""

from __future__ import annotations

import io
import os
import pickle
import struct
import subprocess
import sys
import tempfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from manihot.photos import complaints, decode, limits
from manihot.photos.decode import PhotoFault, decode_photo, inspect_photo, looks_like_photo
from manihot.photos.headers import find_orientation, read_jpeg_head


def picture(height: int = 120, width: int = 161, seed: int = 0) -> np.ndarray:
    """A smooth picture without any symmetry, uint8 RGB."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def encode(rgb: np.ndarray, kind: str = "JPEG", mode: str = "RGB", **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(rgb).convert(mode).save(out, kind, **options)
    return out.getvalue()


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def stored_for(rgb: np.ndarray, orientation: int) -> np.ndarray:
    """The array that shows `rgb` once a reader honours `orientation`, from the table in EXIF 2.32."""
    return {
        1: rgb,
        2: rgb[:, ::-1],
        3: rgb[::-1, ::-1],
        4: rgb[::-1],
        5: rgb.swapaxes(0, 1),
        6: rgb.swapaxes(0, 1)[::-1],
        7: rgb[::-1, ::-1].swapaxes(0, 1),
        8: rgb.swapaxes(0, 1)[:, ::-1],
    }[orientation].copy()


def fault_of(raw: bytes | Path) -> PhotoFault:
    with pytest.raises(PhotoFault) as caught:
        decode_photo(raw)
    assert caught.value.detail and caught.value.remedy
    return caught.value


@settings(max_examples=24, deadline=None)
@given(
    orientation=st.integers(1, 8),
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    kind=st.sampled_from(["PNG", "TIFF", "WEBP"]),
)
def test_every_orientation_gives_the_same_picture(orientation, height, width, kind) -> None:
    rgb = picture(height, width)
    options = {"lossless": True} if kind == "WEBP" else {}
    raw = encode(stored_for(rgb, orientation), kind, exif=exif(orientation), **options)
    np.testing.assert_array_equal(decode_photo(raw), rgb)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_jpeg_both_ways(orientation: int) -> None:
    rgb = picture()
    raw = encode(stored_for(rgb, orientation), quality=97, subsampling=0, exif=exif(orientation))
    fast = decode_photo(raw)
    slow, size = decode._decode_with_pillow(raw, None, limits.MAX_PIXELS)
    np.testing.assert_array_equal(fast, slow)
    assert fast.shape == rgb.shape and size == rgb.shape[:2]
    assert np.abs(fast.astype(int) - rgb).mean() < 2


def test_orientation_in_xmp_alone_counts() -> None:
    packet = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    raw = encode(picture(), xmp=packet)
    assert read_jpeg_head(raw).xmp.strip() == packet
    assert decode_photo(raw).shape == (161, 120, 3)
    assert find_orientation(b"", b"nothing") == 1
    assert find_orientation(b"II*\0\xff\xff\xff\xff") == 1  # points past its end
    assert find_orientation(exif(77).tobytes()) == 1


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(8, 150),
    width=st.integers(8, 150),
    subsampling=st.sampled_from([0, 1, 2]),
    progressive=st.booleans(),
    orientation=st.integers(1, 8),
    least=st.tuples(st.integers(1, 160), st.integers(1, 160)),
)
def test_fast_and_slow_jpeg_agree(height, width, subsampling, progressive, orientation, least) -> None:
    raw = encode(picture(height, width), subsampling=subsampling, progressive=progressive, exif=exif(orientation))
    assert read_jpeg_head(raw).plain
    for at_least in (None, least):
        fast = decode_photo(raw, at_least=at_least)
        slow, _ = decode._decode_with_pillow(raw, at_least, limits.MAX_PIXELS)
        np.testing.assert_array_equal(fast, slow)


def test_at_least_takes_the_smallest_scale_that_is_enough() -> None:
    raw = encode(picture(600, 800), exif=exif(6))  # upright it is 800 high and 600 wide
    assert decode_photo(raw).shape[:2] == (800, 600)
    assert decode_photo(raw, at_least=(224, 224)).shape[:2] == (400, 300)
    assert decode_photo(raw, at_least=(100, 75)).shape[:2] == (100, 75)
    assert decode_photo(raw, at_least=(400, 301)).shape[:2] == (800, 600)
    assert decode_photo(raw, at_least=(4000, 4000)).shape[:2] == (800, 600)
    half = decode_photo(encode(picture(600, 800)), at_least=(300, 400)).astype(int)
    area = cv2.resize(picture(600, 800), (400, 300), interpolation=cv2.INTER_AREA)
    assert np.abs(half - area).mean() < 1.5


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 64 * 3).astype(np.uint16).reshape(3, 64)
    expected = np.round(ramp / 257).astype(np.uint8)
    for kind in ("PNG", "TIFF"):
        out = io.BytesIO()
        Image.fromarray(ramp).save(out, kind)
        np.testing.assert_array_equal(decode_photo(out.getvalue()), np.repeat(expected[..., None], 3, axis=2))
    colour = np.full((9, 9, 3), 40000, np.uint16)
    assert (decode_photo(cv2.imencode(".png", colour)[1].tobytes()) == 156).all()


def test_transparency_lies_over_white() -> None:
    rgba = np.zeros((10, 12, 4), np.uint8)
    rgba[:5] = (200, 10, 20, 255)
    rgba[5:] = (0, 0, 0, 0)
    out = decode_photo(encode(rgba, "PNG", "RGBA"))
    assert (out[:5] == (200, 10, 20)).all() and (out[5:] == 255).all()
    image = Image.fromarray(np.repeat(np.arange(2, dtype=np.uint8)[:, None], 4, axis=1), "P")
    image.putpalette([10, 20, 30, 90, 80, 70])
    raw = io.BytesIO()
    image.save(raw, "PNG", transparency=1)
    out = decode_photo(raw.getvalue())
    assert (out[0] == (10, 20, 30)).all() and (out[1] == 255).all()


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "CMYK"])
def test_other_modes_come_out_as_rgb(mode: str) -> None:
    rgb = picture()
    raw = encode(rgb, "TIFF" if mode == "CMYK" else "PNG", mode)
    out = decode_photo(raw)
    assert out.dtype == np.uint8 and out.shape == rgb.shape
    expected = np.asarray(Image.fromarray(rgb).convert(mode).convert("RGB"))
    np.testing.assert_array_equal(out, expected)


def test_cmyk_and_grey_jpeg() -> None:
    rgb = picture()
    for mode in ("CMYK", "L"):
        raw = encode(rgb, "JPEG", mode, quality=95, exif=exif(6))
        assert not read_jpeg_head(raw).plain
        out = decode_photo(raw)
        assert out.shape == (161, 120, 3)
        near = np.asarray(Image.fromarray(rgb).convert(mode).convert("RGB"))
        assert np.abs(out.astype(int) - np.rot90(near, -1)).mean() < 3
        assert decode_photo(raw, at_least=(40, 30)).shape[:2] == (41, 30)


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "blue")]
    for kind, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {})):
        raw = io.BytesIO()
        frames[0].save(raw, kind, save_all=True, append_images=frames[1:], duration=50, **options)
        assert (decode_photo(raw.getvalue()) == (255, 0, 0)).all(), kind


def gamma_profile() -> bytes:
    """An sRGB profile whose tone curves are replaced by gamma 1.0: the same file must look much brighter."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for k in range(int.from_bytes(data[128:132], "big")):
        tag, offset, size = struct.unpack_from(">4sII", data, 132 + 12 * k)
        if tag in (b"rTRC", b"gTRC", b"bTRC"):
            data[offset : offset + size] = b"curv\0\0\0\0" + bytes(size - 8)  # count 0 is the identity
    return bytes(data)


def test_colour_profiles_are_applied_both_ways() -> None:
    rgb = picture()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    plain = encode(rgb)
    for name, profile in (("sRGB", srgb), ("broken", b"not a profile")):
        with_profile = decode_photo(encode(rgb, icc_profile=profile))
        np.testing.assert_array_equal(with_profile, decode_photo(plain), name)
    raw = encode(rgb, icc_profile=gamma_profile())
    fast, slow = decode_photo(raw), decode._decode_with_pillow(raw, None, limits.MAX_PIXELS)[0]
    np.testing.assert_array_equal(fast, slow)
    linear = decode_photo(plain) / 255
    curve = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055) * 255
    assert np.abs(fast - curve).max() < 2.5
    png = decode_photo(encode(rgb, "PNG", icc_profile=gamma_profile()))
    assert np.abs(png.astype(int) - fast).mean() < 6  # JPEG's loss, through the steep curve


def bomb(width: int, height: int) -> bytes:
    """The head of a PNG that promises width x height pixels."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + head
    data = b"IDAT" + zlib.compress(bytes(100))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (chunk, data, b"IEND")
    )


def test_bombs_are_refused_before_decoding() -> None:
    assert fault_of(bomb(20000, 20000)).kind == "too_large"
    jpeg = bytearray(encode(picture()))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 20000, 20000)
    found = fault_of(bytes(jpeg))
    assert found.kind == "too_large" and "20000 x 20000" in found.detail
    with pytest.raises(PhotoFault, match="more than the limit"):
        decode_photo(encode(picture(), "PNG"), max_pixels=100)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.9, 0.999])
def test_cut_jpeg_is_a_fault(progressive: bool, share: float) -> None:
    thumbnail = encode(picture(20, 20))  # holds an end marker of its own
    tags = exif(1)
    tags[0x9286] = thumbnail
    raw = encode(picture(400, 500), progressive=progressive, exif=tags)
    decode_photo(raw)
    cut = raw[: int(share * len(raw))]
    assert fault_of(cut).kind == "truncated"
    padded = cut + bytes(len(raw) - len(cut))  # what a failing memory card leaves
    assert fault_of(padded).kind == "truncated"


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "TIFF", "BMP", "JPEG2000"])
def test_cut_files_of_other_formats_are_faults(kind: str) -> None:
    raw = encode(picture(), kind)
    decode_photo(raw)
    assert fault_of(raw[: len(raw) // 2]).kind in ("truncated", "unreadable")
    assert fault_of(raw[:12]).kind in ("truncated", "unreadable")


def test_files_that_are_no_photographs(tmp_path: Path) -> None:
    assert fault_of(b"").kind == "empty"
    assert fault_of(bytes(5000)).kind == "empty"
    page = fault_of(b"\n<!DOCTYPE html><html><body>404 Not Found</body></html>")
    assert page.kind == "not_an_image" and "web page" in page.detail
    assert fault_of(b"PK\x03\x04 some archive").kind == "not_an_image"
    assert fault_of(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n").kind == "not_an_image"
    assert fault_of(tmp_path / "absent.jpg").kind == "missing"
    (tmp_path / "folder.jpg").mkdir()
    assert fault_of(tmp_path / "folder.jpg").kind in ("not_an_image", "no_permission")
    raw = tmp_path / "DSC1.NEF"
    raw.write_bytes(encode(picture(), "TIFF"))
    assert fault_of(raw).kind == "unsupported"
    deep = io.BytesIO()
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(deep, "TIFF")
    assert fault_of(deep.getvalue()).kind == "unsupported"


def test_heic_without_its_reader_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "_register_heif", lambda: False)
    head = struct.pack(">I", 24) + b"ftypheic" + bytes(4) + b"mif1heic"
    found = fault_of(head + bytes(50))
    assert found.kind == "unsupported" and "manihot[heic]" in found.remedy


def test_inspect_tells_upright_size_and_digest(tmp_path: Path) -> None:
    import hashlib

    path = tmp_path / "été 1.JPG"
    raw = encode(picture(90, 130), exif=exif(8))
    path.write_bytes(raw)
    facts = inspect_photo(path)
    assert (facts.height, facts.width, facts.bytes) == (130, 90, len(raw))
    assert facts.sha256 == hashlib.sha256(raw).hexdigest()
    path.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(PhotoFault):
        inspect_photo(path)


def test_a_fault_crosses_processes() -> None:
    found = pickle.loads(pickle.dumps(fault_of(b"")))
    assert isinstance(found, PhotoFault) and found.kind == "empty" and found.remedy


def test_files_without_extension_are_recognised(tmp_path: Path) -> None:
    (tmp_path / "photo").write_bytes(encode(picture()))
    (tmp_path / "notes").write_bytes(b"some words")
    assert looks_like_photo(tmp_path / "photo") and not looks_like_photo(tmp_path / "notes")
    assert not looks_like_photo(tmp_path / "absent")


def textured(height: int = 240, width: int = 320) -> np.ndarray:
    """A picture with grain, whose JPEG has some 50 kB."""
    grain = np.random.default_rng(1).integers(-25, 25, (height, width, 3))
    return np.clip(picture(height, width).astype(int) + grain, 0, 255).astype(np.uint8)


JPEGS = {
    "plain": {"quality": 95},
    "optimised": {"optimize": True, "quality": 95},
    "progressive": {"progressive": True, "quality": 95},
    "restarts": {"restart_marker_blocks": 20, "quality": 95},
    "grey": {"mode": "L", "quality": 95},
    "cmyk": {"mode": "CMYK"},
}
HURT = {
    "cut, with an end marker": lambda raw: raw[: len(raw) // 2] + b"\xff\xd9",
    "zeros in its middle": lambda raw: raw[: len(raw) // 2] + bytes(3000) + raw[len(raw) // 2 + 3000 :],
}


@pytest.mark.parametrize("hurt", HURT)
@pytest.mark.parametrize("kind", JPEGS)
def test_damage_that_decodes_is_a_fault_of_the_scan(tmp_path: Path, capfd, kind: str, hurt: str) -> None:
    raw = encode(textured(), **JPEGS[kind])
    (tmp_path / "whole.jpg").write_bytes(raw)
    inspect_photo(tmp_path / "whole.jpg")
    (tmp_path / "hurt.jpg").write_bytes(HURT[hurt](raw))
    with pytest.raises(PhotoFault) as caught:
        inspect_photo(tmp_path / "hurt.jpg")
    assert caught.value.kind == "damaged" and "copy the file again" in caught.value.remedy
    assert capfd.readouterr().err == ""


def test_what_is_harmless_in_a_jpeg_is_no_fault_and_not_said(tmp_path: Path, capfd) -> None:
    grey, grain = textured(), encode(textured())
    grey[120:] = 128  # what libjpeg fills in where data are missing
    frame = grain.index(b"\xff\xdb")
    harmless = {
        "grey": encode(grey),
        "a few bytes": grain[:-2] + b"abcdef\xff\xd9",
        "padded": grain[:-2] + bytes(700) + b"\xff\xd9",
        "behind": grain + b"more" * 99,
        "unknown JFIF": grain.replace(b"JFIF\0\1\1", b"JFIF\0\7\1", 1),
        "fill bytes": grain[:frame] + b"\xff\xff" + grain[frame:],
    }
    for name, raw in harmless.items():
        (tmp_path / "photo.jpg").write_bytes(raw)
        assert inspect_photo(tmp_path / "photo.jpg").bytes == len(raw), name
        decode_photo(raw)
    assert capfd.readouterr().err == ""


def test_a_first_harmless_remark_hides_no_damage(tmp_path: Path) -> None:
    """libjpeg says the first of its remarks only."""
    raw = encode(textured(), quality=95).replace(b"JFIF\0\1\1", b"JFIF\0\7\1", 1)
    (tmp_path / "photo.jpg").write_bytes(raw[: len(raw) // 2] + b"\xff\xd9")
    with pytest.raises(PhotoFault, match="data are damaged"):
        inspect_photo(tmp_path / "photo.jpg")


def test_what_others_write_while_a_photograph_is_decoded_is_passed_on(capfd) -> None:
    hurt = HURT["zeros in its middle"](encode(textured(), quality=95))
    with complaints.quiet_decoders():
        os.write(2, b"a word of another thread\n")
        cv2.imdecode(np.frombuffer(hurt, np.uint8), cv2.IMREAD_COLOR)
        with complaints.hear_decoders() as said:
            cv2.imdecode(np.frombuffer(hurt, np.uint8), cv2.IMREAD_COLOR)
            os.write(2, b"another")
    assert said and all(line.startswith("Corrupt JPEG data") for line in said)
    assert capfd.readouterr().err == "a word of another thread\nanother"
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(decode_photo, [hurt] * 40))
    os.write(2, b"the end")
    assert capfd.readouterr().err == "the end"


def test_without_a_standard_error_photographs_are_decoded_and_judged() -> None:
    code = (
        "import os, sys; os.close(2); from pathlib import Path; from manihot.photos.decode import *\n"
        "found = inspect_photos([Path(p) for p in sys.argv[1:]])\n"
        "print([getattr(one, 'kind', 'whole') for one in found])"
    )
    with tempfile.TemporaryDirectory() as folder:
        whole, hurt = Path(folder, "a.jpg"), Path(folder, "b.jpg")
        whole.write_bytes(raw := encode(textured(), quality=95))
        hurt.write_bytes(HURT["cut, with an end marker"](raw))
        command = [sys.executable, "-c", code, str(whole), str(hurt)]
        found = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE)
    assert found.stdout.strip() == "['whole', 'damaged']"

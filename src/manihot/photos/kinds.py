"""What a file is, by its first bytes: an image format that is read here, or something else with its remedy."""

from __future__ import annotations

import re
import struct

from manihot.photos.faults import COPY_AGAIN, SAVE_AS_JPEG, PhotoFault
from manihot.photos.headers import is_heif
from manihot.photos.tiff import describe_tiff

UNPACK = "unpack it and give the photographs"
STILLS = "save still pictures from it, for example with ffmpeg"
RAW = "the raw file of a camera"
DEVELOP = "develop it, or export it from the camera's program as JPEG"

FORMATS = (  # offset, bytes, name
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG\r\n", "PNG"),
    (0, b"GIF8", "GIF"),
    (0, b"BM", "BMP"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"II+\0", "TIFF"),
    (0, b"MM\0+", "TIFF"),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (8, b"WEBP", "WebP"),
)
OTHERS = (  # offset, bytes, kind of the fault, what it is, remedy
    (8, b"CR\x02\0", "unsupported", f"{RAW} (Canon CR2)", DEVELOP),
    (4, b"ftypcrx ", "unsupported", f"{RAW} (Canon CR3)", DEVELOP),
    (0, b"FUJIFILMCCD-RAW", "unsupported", f"{RAW} (Fujifilm RAF)", DEVELOP),
    (0, b"IIRO", "unsupported", f"{RAW} (Olympus ORF)", DEVELOP),
    (0, b"IIRS", "unsupported", f"{RAW} (Olympus ORF)", DEVELOP),
    (0, b"IIU\0", "unsupported", f"{RAW} (Panasonic RW2)", DEVELOP),
    (0, b"FOVb", "unsupported", f"{RAW} (Sigma X3F)", DEVELOP),
    (0, b"\0MRM", "unsupported", f"{RAW} (Minolta MRW)", DEVELOP),
    (0, b"\xff\x0a", "unsupported", "a JPEG XL picture", SAVE_AS_JPEG),
    (0, b"\0\0\0\x0cJXL ", "unsupported", "a JPEG XL picture", SAVE_AS_JPEG),
    (0, b"8BPS", "unsupported", "a Photoshop document", SAVE_AS_JPEG),
    (0, b"gimp xcf", "unsupported", "a GIMP document", SAVE_AS_JPEG),
    (0, b"v/1\x01", "unsupported", "an OpenEXR picture", SAVE_AS_JPEG),
    (0, b"#?RADIANCE", "unsupported", "a Radiance HDR picture", SAVE_AS_JPEG),
    (0, b"#?RGBE", "unsupported", "a Radiance HDR picture", SAVE_AS_JPEG),
    (0, b"SIMPLE  =", "unsupported", "a FITS picture", SAVE_AS_JPEG),
    (128, b"DICM", "unsupported", "a DICOM picture", SAVE_AS_JPEG),
    (0, b"\x89HDF", "unsupported", "an HDF5 file", "save its pictures as JPEG or 8-bit PNG"),
    (0, b"\x93NUMPY", "unsupported", "an array of numpy", "save its pictures as JPEG or 8-bit PNG"),
    (0, b"DDS ", "unsupported", "a DirectDraw texture", SAVE_AS_JPEG),
    (0, b"qoif", "unsupported", "a QOI picture", SAVE_AS_JPEG),
    (0, b"\0\0\x01\0", "unsupported", "a Windows icon", SAVE_AS_JPEG),
    (0, b"%PDF", "not_an_image", "a PDF document", "save the pictures in it as JPEG"),
    (0, b"%!PS", "not_an_image", "a PostScript document", SAVE_AS_JPEG),
    (0, b"\x1aE\xdf\xa3", "not_an_image", "a video (Matroska or WebM)", STILLS),
    (8, b"AVI ", "not_an_image", "a video (AVI)", STILLS),
    (0, b"\0\0\x01\xba", "not_an_image", "a video (MPEG)", STILLS),
    (0, b"\0\0\x01\xb3", "not_an_image", "a video (MPEG)", STILLS),
    (0, b"FLV\x01", "not_an_image", "a video (Flash)", STILLS),
    (0, b"0&\xb2u\x8ef\xcf\x11", "not_an_image", "a video (Windows Media)", STILLS),
    (4, b"moov", "not_an_image", "a video (QuickTime)", STILLS),
    (4, b"mdat", "not_an_image", "a video (QuickTime)", STILLS),
    (
        0,
        b"\0\x05\x16\x07",
        "not_an_image",
        "what macOS keeps beside a file (AppleDouble), not the photograph",
        "leave it out; the photograph is the file whose name lacks the leading '._'",
    ),
    (0, b"\0\x05\x16\0", "not_an_image", "an AppleSingle file", COPY_AGAIN),
    (0, b"PK\x03\x04", "not_an_image", "a zip archive or an office document", UNPACK),
    (0, b"Rar!", "not_an_image", "a RAR archive", UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "not_an_image", "a 7z archive", UNPACK),
    (0, b"\x1f\x8b", "not_an_image", "packed by gzip", UNPACK),
    (0, b"BZh", "not_an_image", "packed by bzip2", UNPACK),
    (0, b"\xfd7zXZ", "not_an_image", "packed by xz", UNPACK),
    (257, b"ustar", "not_an_image", "a tar archive", UNPACK),
    (0, b"L\0\0\0\x01\x14\x02\0", "not_an_image", "a shortcut of Windows", "copy the file that it points to"),
    (0, b"book\0\0\0\0", "not_an_image", "an alias of macOS", "copy the file that it points to"),
    (0, b"SQLite format 3", "not_an_image", "a database", "leave it out"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "not_an_image", "an old office document or Thumbs.db", "leave it out"),
    (0, b"MZ", "not_an_image", "a program of Windows", "leave it out"),
    (0, b"\x7fELF", "not_an_image", "a program", "leave it out"),
)
LFS = re.compile(rb"version https://(?:git-lfs\.github\.com|hawser\.github\.com)/spec/")
ANNEX = re.compile(rb"(?:\.\./)*(?:\.git)?/?annex/objects/")
WEB = (b"<!doctype", b"<html", b"<?xml", b"<svg", b"<head", b"<body", b"<!--", b"<error")
PRINTED = re.compile(rb"[\t\n\r\x20-\x7e\x80-\xff]+")


def signature(raw: bytes) -> str:
    """Name of the image format that begins with these bytes, '' for none that is read here."""
    if raw[4:8] == b"ftyp":
        return "HEIC" if is_heif(raw) else "AVIF" if b"avi" in raw[8:32] else ""
    if re.match(rb"P[1-6][\s#]", raw):
        return "PPM"
    return next((name for at, start, name in FORMATS if raw.startswith(start, at)), "")


def name_other(raw: bytes) -> PhotoFault | None:
    """The fault of a file whose first bytes say that it is no format that is read here; None for all others."""
    for at, start, kind, what, remedy in OTHERS:
        if raw.startswith(start, at):
            return PhotoFault(kind, f"it is {what}", remedy)
    if raw[4:8] == b"ftyp" and not signature(raw):
        return PhotoFault("not_an_image", "it is a video (MP4 or QuickTime)", STILLS)
    if LFS.match(raw):
        remedy = "run `git lfs pull` in its folder to fetch the photographs"
        return PhotoFault("not_an_image", "it is a Git LFS pointer, not the photograph itself", remedy)
    if ANNEX.match(raw):
        remedy = "run `git annex get .` in its folder to fetch the photographs"
        return PhotoFault("not_an_image", "it is a git-annex pointer, not the photograph itself", remedy)
    return None


def explain_unidentified(raw: bytes) -> PhotoFault:
    """The fault of bytes that no image reader knows."""
    other = name_other(raw)
    if other is not None:
        return other
    known = signature(raw)
    if known == "TIFF" and (said := describe_tiff(raw)):
        return PhotoFault("unsupported", f"unsupported: {said}", SAVE_AS_JPEG)
    if known == "BMP" and len(raw) > 26 and int.from_bytes(raw[2:6], "little") == len(raw):
        return PhotoFault("unsupported", "unsupported: a BMP of an unknown kind", SAVE_AS_JPEG)
    if known:
        detail = f"it begins as {known} but its head is incomplete or broken"
        return PhotoFault("truncated", detail, COPY_AGAIN)
    if not raw.strip(b"\0"):
        return PhotoFault("empty", "the file contains only zeros", COPY_AGAIN)
    return _explain_text(raw)


def _explain_text(raw: bytes) -> PhotoFault:
    start = raw[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<svg", b"<?xml")) and b"<svg" in raw[:4096].lower():
        return PhotoFault("unsupported", "it is a drawing (SVG)", SAVE_AS_JPEG)
    if start.startswith(WEB):
        detail = "it is a web page or XML saved under an image's name"
        return PhotoFault("not_an_image", detail, "download the photograph again")
    if start.startswith((b"data:image", b"/9j/", b"ivborw0kggo")):
        return PhotoFault("not_an_image", "it is a picture written as text (base64)", "decode it to a file first")
    if raw.startswith(b"\0\0"):
        return PhotoFault("damaged", "its beginning is filled with zeros", COPY_AGAIN)
    if start and PRINTED.fullmatch(raw[:512]) and _is_text(raw[:512]):
        words = " ".join(raw[:40].decode("utf-8", "replace").split())
        return PhotoFault("not_an_image", f"it is a text, which begins {words!r}", "download the photograph again")
    return PhotoFault("not_an_image", "its content is not that of a known image format", COPY_AGAIN)


def _is_text(raw: bytes) -> bool:
    try:
        raw[: raw.rfind(b" ") + 1 or len(raw)].decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def explain_broken(raw: bytes, error: Exception) -> PhotoFault:
    """The fault behind an image decoder's exception."""
    text = str(error) or type(error).__name__
    known = signature(raw)
    cut_webp = raw[:4] == b"RIFF" and int.from_bytes(raw[4:8], "little") + 8 > len(raw)
    if "runcated" in text or cut_webp or isinstance(error, (EOFError, struct.error)):
        return PhotoFault("truncated", "the file ends before the picture does", COPY_AGAIN)
    if known == "TIFF" and "decoder error" not in text and (said := describe_tiff(raw)):
        return PhotoFault("unsupported", f"unsupported: {said} ({text})", SAVE_AS_JPEG)
    return PhotoFault("unreadable", f"the {known or 'image'} decoder fails: {text}", COPY_AGAIN)

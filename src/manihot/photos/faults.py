"""Why a photograph can't be read, in words a user can act on."""

from __future__ import annotations

from manihot.photos.headers import signature

COPY_AGAIN = "copy the file again from the camera or its source, or leave it out"
SAVE_AS_JPEG = "save it as JPEG or 8-bit PNG"


class PhotoFault(Exception):
    """Why a photograph can't be read.

    kind: one of missing, no_permission, empty, truncated, damaged, not_an_image, too_large, unsupported, unreadable,
    changed (since the scan).
    """

    def __init__(self, kind: str, detail: str, remedy: str) -> None:
        super().__init__(kind, detail, remedy)  # all three, so that it crosses from process to process
        self.kind = kind
        self.detail = detail
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.detail} ({self.remedy})"


def explain_refusal(error: OSError) -> PhotoFault:
    """The fault for an operating system's refusal to hand over a file."""
    if isinstance(error, FileNotFoundError):
        return PhotoFault("missing", "there is no such file", "check the path, or leave the row out")
    if isinstance(error, PermissionError):
        return PhotoFault("no_permission", "the file may not be read", "change its permissions")
    return PhotoFault("unreadable", f"the disk gives an error: {error.strerror or error}", COPY_AGAIN)


def explain_unidentified(raw: bytes) -> PhotoFault:
    """The fault of bytes that no image reader knows."""
    known = signature(raw)
    if known:
        detail = f"it begins as {known} but its head is incomplete or broken"
        return PhotoFault("truncated", detail, COPY_AGAIN)
    if not raw.strip(b"\0"):
        return PhotoFault("empty", "the file holds nothing but zeros", COPY_AGAIN)
    start = raw[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<svg", b"<head", b"<body")):
        detail = "it is a web page or XML saved under an image's name"
        return PhotoFault("not_an_image", detail, "download the photograph again")
    return PhotoFault("not_an_image", "its content is not that of a known image format", COPY_AGAIN)


def explain_broken(raw: bytes, error: Exception) -> PhotoFault:
    """The fault behind an image decoder's exception."""
    text = str(error) or type(error).__name__
    cut_webp = raw[:4] == b"RIFF" and int.from_bytes(raw[4:8], "little") + 8 > len(raw)
    if "runcated" in text or cut_webp or isinstance(error, EOFError):
        return PhotoFault("truncated", "the file ends before the picture does", COPY_AGAIN)
    return PhotoFault("unreadable", f"the {signature(raw) or 'image'} decoder fails: {text}", COPY_AGAIN)

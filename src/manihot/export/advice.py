"""advice.yaml: what the phone page says to do about each class, with pictures, in several languages."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import cv2
from PIL import Image
from pydantic import Field

from manihot.errors import SettingsError
from manihot.photos.decode import decode_photo
from manihot.photos.faults import PhotoFault
from manihot.settings.explain import validated
from manihot.settings.kinds import Group, Lines, suggest
from manihot.settings.yaml_files import read_text, read_yaml

EDGE = 720  # pixels of a picture's longer edge, in the page
MOST_PICTURES = 1_500_000  # bytes of all pictures in the page: what it may grow by on a slow network

Texts = dict[str, str]  # by language, such as {en: ..., sw: ...}


class Picture(Group):
    """A picture beside an advice."""

    file: str = Field(description="the picture's file, relative to advice.yaml")
    text: Texts = Field(default_factory=dict, description="what it shows, by language")


class ClassAdvice(Group):
    """The advice for one class."""

    name: Texts = Field(default_factory=dict, description="what people call the class, by language")
    text: Texts = Field(default_factory=dict, description="what to do, by language")
    pictures: tuple[Picture, ...] = Field((), description="pictures beside the text")


class Advice(Group):
    """The whole file."""

    classes: dict[str, ClassAdvice] = Field(default_factory=dict, description="the advice for each class")
    expert: Texts = Field(default_factory=dict, description="whom to ask, shown where the model can't decide")


def read_advice(path: Path, classes: tuple[str, ...], languages: tuple[str, ...]) -> dict[str, Any]:
    """The advice as the page holds it, pictures as data URLs.

    File names of pictures are relative to the file. languages: those of the page. Raises SettingsError with file and
    line for what is no advice, names no class or language, or can't be read as a picture.
    """
    values, lines = read_yaml(str(path), read_text(path, "--advice: "), "a file of advice")
    advice = validated(Advice, values, lines)
    _check_names(values, lines, classes, languages)
    left = MOST_PICTURES
    found: dict[str, Any] = {}
    for name, one in advice.classes.items():
        pictures = []
        for number, picture in enumerate(one.pictures):
            where = _line(lines, ("classes", name, "pictures", number, "file"))
            made = _embed(path.parent / picture.file, where)
            left -= len(made["uri"])
            if left < 0:
                raise SettingsError(
                    f"{where}: with {picture.file} the pictures take more than {MOST_PICTURES:,} bytes of the page",
                    "leave some out",
                )
            pictures.append({**made, "text": picture.text})
        found[name] = {"name": one.name, "text": one.text or None, "pictures": pictures}
    return {"classes": found, "expert": advice.expert or None}


def _line(lines: Lines, key: tuple[str | int, ...]) -> str:
    return next(lines[key[:end]] for end in range(len(key), -1, -1) if key[:end] in lines)


def _check_names(values: dict[str, Any], lines: Lines, classes: tuple[str, ...], languages: tuple[str, ...]) -> None:
    texts: list[tuple[str | int, ...]] = [("expert",)]
    for name, one in (values.get("classes") or {}).items():
        if name not in classes:
            raise SettingsError(f"{lines[('classes', name)]}: there is no class {name!r}", suggest(name, list(classes)))
        texts += [("classes", name, "name"), ("classes", name, "text")]
        texts += [("classes", name, "pictures", k, "text") for k in range(len(one.get("pictures") or ()))]
    for key in texts:
        found: Any = values
        for part in key:
            found = found.get(part) if isinstance(found, dict) else found[part]
            if found is None:
                break
        for language in found or ():
            if language not in languages:
                where = _line(lines, (*key, language))
                raise SettingsError(f"{where}: the page has no language {language!r}", f"one of {', '.join(languages)}")


def _embed(file: Path, where: str) -> dict[str, Any]:
    """A picture as a JPEG of at most EDGE pixels, without what its file says of time and place."""
    try:
        rgb = decode_photo(file)
    except PhotoFault as fault:
        raise SettingsError(f"{where}: {file}: {fault.kind}: {fault.detail}", fault.remedy) from fault
    height, width = rgb.shape[:2]
    scale = min(1.0, EDGE / max(height, width))
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    made = io.BytesIO()
    Image.fromarray(rgb).save(made, "JPEG", quality=80, optimize=True, progressive=True)
    uri = "data:image/jpeg;base64," + base64.b64encode(made.getvalue()).decode()
    return {"uri": uri, "width": rgb.shape[1], "height": rgb.shape[0]}

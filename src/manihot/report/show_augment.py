"""Pictures of what a recipe's augmentations do to one photograph: a user checks the recipe with their eyes.

The pictures are those that training would see for this photograph: the same store, operations, schedules and
colours, drawn by the recipe's seed. Mixes of several photographs come from `train.show_mixes`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from manihot.augment.augmenter import Augmenter
from manihot.errors import DataError, SettingsError
from manihot.photos.decode import decode_photo
from manihot.photos.faults import PhotoFault
from manihot.photos.preprocess import Preprocess, Unresized
from manihot.records.files import atomic_path, write_atomic
from manihot.report.pages import render
from manihot.report.thumbnails import jpeg_uri
from manihot.settings import Photo, Recipe

EDGE = 240  # pixels of a picture's longer edge on the page, at most
QUALITY = 90
Shown = tuple[str, np.ndarray]  # caption, uint8 RGB


def show_augment(
    recipe: Recipe,
    photo: Path,
    out: Path,
    epochs: Sequence[int] = (),
    n: int = 24,
    others: Sequence[Path] = (),
    mixes: Callable[[Recipe, Sequence[np.ndarray]], list[Shown]] | None = None,
) -> Path:
    """Write a page of `n` augmented pictures of `photo` for each member, labelled with what was applied.

    out: .html (one file, opens offline) or .png (a sheet). epochs: which to show, counted from 0; spread over
    the whole training when left out, so that schedules are seen. others: photographs that `mixes` mixes it with, in
    sections of their own. Returns `out`. Raises SettingsError for an
    unknown suffix, epoch or operation, DataError when the photograph can't be read.
    """
    out, photo = Path(out), Path(photo)
    if out.suffix.lower() not in WRITERS:
        raise SettingsError(f"{out}: pictures are written as {' or '.join(WRITERS)}", "choose such a file name")
    rgb, *more = [_decoded(path) for path in (photo, *map(Path, others))]
    members = recipe.member_recipes()
    sections = {name: augmented_pictures(member, rgb, epochs, n) for name, member in members.items()}
    if mixes is not None:
        mixed = {f"{name}, mixed": mixes(member, [rgb, *more]) for name, member in members.items() if member.mixing}
        sections |= {name: shown for name, shown in mixed.items() if shown}
    WRITERS[out.suffix.lower()](out, f"{recipe.name or 'recipe'}: augmentations of {photo.name}", sections)
    return out


def _decoded(photo: Path) -> np.ndarray:
    try:
        return decode_photo(photo)
    except PhotoFault as fault:
        raise DataError(f"{photo}: {fault.detail}", fault.remedy) from fault


def augmented_pictures(recipe: Recipe, rgb: np.ndarray, epochs: Sequence[int] = (), n: int = 24) -> list[Shown]:
    """The picture without augmentation, then `n` as training sees them; captions say what was drawn."""
    size = input_size(recipe.photo, (rgb.shape[0], rgb.shape[1]))
    stored = (round(size[0] * recipe.photo.store_scale), round(size[1] * recipe.photo.store_scale))
    own = recipe.photo.proportions == "own"
    preprocess = Preprocess(size, recipe.photo.fit, stored=stored, own=own)
    first_step = preprocess.for_store
    small = Unresized(rgb, first_step) if recipe.photo.store == "none" else first_step(rgb)
    last = recipe.train.epochs - 1
    wrong = [epoch for epoch in epochs if not 0 <= epoch <= last]
    if wrong:
        raise SettingsError(f"there is no epoch {wrong[0]} in this recipe", f"epochs run from 0 to {last}")
    shown_epochs = sorted(epochs) or np.linspace(0, last, n).round().astype(int).tolist()
    plain = Augmenter((), size, recipe.seed, recipe.train.epochs, preprocess.last_fit)
    augmenter = Augmenter(recipe.augment, size, recipe.seed, recipe.train.epochs, preprocess.last_fit)
    shown = [("without augmentation", plain.explain(small, 0, 0)[0])]
    for index in range(n):
        epoch = shown_epochs[index * len(shown_epochs) // n]
        picture, drawn = augmenter.explain(small, epoch, index)
        shown.append((f"epoch {epoch}\n" + ("\n".join(map(_caption, drawn)) or "nothing applied"), picture))
    return shown


def input_size(photo: Photo, own: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the model's input; `auto` takes this photograph's proportion, within 1:2 and 2:1."""
    if photo.size != "auto":
        return photo.size
    root = min(max(own[1] / own[0], 0.5), 2.0) ** 0.5
    edge = photo.area**0.5
    return max(32, round(edge / root / 32) * 32), max(32, round(edge * root / 32) * 32)


def _caption(drawn: tuple[str, dict[str, Any]]) -> str:
    name, values = drawn
    return " ".join([name, *(f"{key}={value:.3g}" for key, value in values.items())])


def _write_html(out: Path, title: str, sections: dict[str, list[Shown]]) -> None:
    drawn = {
        name: [(caption, jpeg_uri(np.asarray(_fit(picture)), QUALITY)) for caption, picture in shown]
        for name, shown in sections.items()
    }
    write_atomic(out, render("show_augment", title=title, sections=drawn))


def _write_png(out: Path, title: str, sections: dict[str, list[Shown]]) -> None:
    font, small, gap, line = ImageFont.load_default(16), ImageFont.load_default(11), 10, 14
    shown = [(name, *pair) for name, pairs in sections.items() for pair in pairs]
    captions = [_wrapped(f"{name}\n{text}" if len(sections) > 1 else text, small) for name, text, _ in shown]
    pictures = [_fit(picture) for _, _, picture in shown]
    columns = min(6, len(shown))
    height = max(p.height for p in pictures) + line * max(map(len, captions)) + gap
    width = max(p.width for p in pictures) + gap
    sheet = Image.new("RGB", (columns * width + gap, -(-len(shown) // columns) * height + 40), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((gap, gap), title, fill="black", font=font)
    for place, (lines, picture) in enumerate(zip(captions, pictures)):
        left, top = gap + place % columns * width, 40 + place // columns * height
        sheet.paste(picture, (left, top))
        for row, text in enumerate(lines):
            draw.text((left, top + picture.height + row * line), text, fill="black", font=small)
    with atomic_path(out) as temporary:
        sheet.save(temporary, "PNG")


def _fit(picture: np.ndarray) -> Image.Image:
    image = Image.fromarray(picture)
    image.thumbnail((EDGE, EDGE), Image.Resampling.LANCZOS)
    return image


def _wrapped(text: str, font: Any) -> list[str]:
    """Lines of at most EDGE pixels."""
    lines: list[str] = []
    for paragraph in text.split("\n"):
        words = paragraph.split(" ")
        lines.append(words[0])
        for word in words[1:]:
            longer = f"{lines[-1]} {word}"
            if font.getlength(longer) <= EDGE:
                lines[-1] = longer
            else:
                lines.append("  " + word)
    return lines


WRITERS = {".html": _write_html, ".png": _write_png}

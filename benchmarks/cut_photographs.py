"""How many cut and filled JPEGs the scan finds, and how many whole ones it takes for damaged.

    python benchmarks/cut_photographs.py [--count 2000] [--seed 0]

Photographs of BRACOL (bracol/leaf under $MANIHOT_DATA), as they are or saved anew as progressive, optimised, grey or
with restart markers, are cut at any place behind their head, filled in one of FILLINGS up to their old size, half or
twice the rest of it, and closed with an end marker. A cut file that is accepted is printed with the mean difference of
its picture from the whole one, in levels.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from manihot.photos.decode import PhotoFault, decode_photo, inspect_photos
from manihot.photos.headers import read_jpeg_head

FORMS = {
    "as it is": None,
    "optimised": {"optimize": True},
    "progressive": {"progressive": True},
    "restart markers": {"restart_marker_blocks": 8},
    "grey": {},
}
FILLINGS = {
    "zeros": b"\0",
    "0xff": b"\xff",
    "0x55": b"\x55",
    "0xaa55": b"\xaa\x55",
    "0xff00": b"\xff\0",
    "text": b"the quick brown fox ",
    "random": None,
    "its own data": None,
}


def cut_and_fill(raw: bytes, filling: str, rng: random.Random) -> bytes:
    """The file up to some place, the filling, and an end marker."""
    scan = read_jpeg_head(raw).scan
    cut = rng.randrange(scan + 50, len(raw) - 60)
    length = len(raw) - cut - 2
    length = rng.choice((length, length, length, 2 * length, max(40, length // 2)))
    if filling == "random":
        return raw[:cut] + rng.randbytes(length) + b"\xff\xd9"
    pattern = raw[scan:cut] if filling == "its own data" else FILLINGS[filling]
    return raw[:cut] + (pattern * (length // len(pattern) + 1))[:length] + b"\xff\xd9"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    photos = sorted((Path(os.environ["MANIHOT_DATA"]) / "bracol/leaf").glob("*.jpg"))
    wrong = sum(isinstance(found, PhotoFault) for found in inspect_photos(photos))
    print(f"{len(photos)} whole photographs: {wrong} taken for damaged")
    rng = random.Random(options.seed)
    kinds: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "photo.jpg")
        for _ in range(options.count):
            form, filling = rng.choice(list(FORMS)), rng.choice(list(FILLINGS))
            raw = rng.choice(photos).read_bytes()
            if FORMS[form] is not None:
                out = io.BytesIO()
                image = Image.fromarray(decode_photo(raw)).convert("L" if form == "grey" else "RGB")
                image.save(out, "JPEG", quality=rng.choice((75, 85, 92)), **FORMS[form])
                raw = out.getvalue()
            path.write_bytes(cut_and_fill(raw, filling, rng))
            found = inspect_photos([path])[0]
            kind = found.kind if isinstance(found, PhotoFault) else "accepted"
            kinds[kind] += 1
            if kind == "accepted":
                differs = np.abs(decode_photo(path).astype(int) - decode_photo(raw)).mean()
                print(f"accepted: {form}, filled with {filling}, {differs:.1f} levels of difference")
    print(f"{options.count} cut and filled: {dict(kinds)}")


if __name__ == "__main__":
    main()

"""From a file to a photograph of the size that is stored or predicted."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from manihot.photos.decode import decode_photo, decode_sized
from manihot.photos.preprocess import Preprocess, Unresized


def load_photo(source: Path | bytes, preprocess: Preprocess) -> np.ndarray:
    """Decode a photograph as small as is enough and bring it to size: uint8 (height, width, 3).

    The one way from a file to stored or predicted pixels. preprocess: without `stored`, that is `for_store`.
    Raises PhotoFault.
    """
    return preprocess(*decode_sized(source, at_least=preprocess.size))


def load_unresized(source: Path | bytes, preprocess: Preprocess) -> Unresized:
    """As `load_photo`, but cut and resized only when it is augmented."""
    rgb, full = decode_sized(source, at_least=preprocess.size)
    return Unresized(rgb, preprocess, full)


def load_in_full(source: Path | bytes, preprocess: Preprocess) -> np.ndarray:
    """A photograph as an exported model's input: decoded at its full size, as browsers do.

    `load_photo` takes a large JPEG at a fraction of its size, which is faster and gives slightly other pixels.
    """
    return preprocess(preprocess.for_store(decode_photo(source)))

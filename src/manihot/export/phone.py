"""The page for a phone: one HTML file that holds the model, its runtime and everything else, and needs no network.

The runtime is onnxruntime-web (MIT), an npm package, whose plain WebAssembly part is copied into the page. Decoding is
the browser's; from there on the pixels are brought to size by `page/pixels.js`, equal to the bit to `Preprocess`.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import zlib
from importlib import resources
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jinja2 import Environment, StrictUndefined
from PIL import Image

from manihot.errors import SettingsError
from manihot.networks.runner import OnnxRunner
from manihot.photos.decode import decode_photo
from manihot.photos.preprocess import Preprocess
from manihot.records.files import write_atomic
from manihot.records.readers import read_json

VERSION = "1.30.0"  # of onnxruntime-web, with which the page is tested
SCRIPT, WASM = "dist/ort.wasm.bundle.min.mjs", "dist/ort-wasm-simd-threaded.wasm"
BOUND = 1e-3  # largest difference of a probability in the page's self-test: in fp32 it is below 1e-5
INT8_BOUND = 0.02  # of int8, where one activation that is rounded the other way shows


def find_runtime(folder: Path | None = None) -> Path:
    """The unpacked npm package onnxruntime-web: `folder`, or $MANIHOT_CACHE/onnxruntime-web.

    Raises SettingsError without it.
    """
    cache = Path(os.environ.get("MANIHOT_CACHE") or Path.home() / ".cache/manihot") / "onnxruntime-web"
    for place in [folder] if folder is not None else [cache]:
        for found in (place, place / "package", place / "node_modules/onnxruntime-web"):
            if (found / SCRIPT).is_file() and (found / WASM).is_file():
                return found
    where = f"--runtime {folder}" if folder is not None else str(cache)
    raise SettingsError(
        f"{where}: no onnxruntime-web here, which runs the model in a browser",
        f"npm pack onnxruntime-web@{VERSION}, unpack it (tar -xzf onnxruntime-web-{VERSION}.tgz), and name the folder: "
        "--runtime package; or move it to " + str(cache),
    )


def write_page(page: Path, model: Path, about: dict[str, Any], runtime: Path, title: str) -> None:
    """Write the page, atomically.

    model, about: of `export_run`. runtime: of `find_runtime`.
    """
    preprocess = Preprocess.from_json(about["preprocess"])
    photo = draw_test_photo()
    facts = {
        "classes": about["classes"],
        "preprocess": about["preprocess"],
        "sets": about["sets"],
        "promise": _promise(about),
        "test": expected(model, preprocess, photo, int8=about.get("precision") == "int8"),
    }
    package = read_json(runtime / "package.json", "the package.json of onnxruntime-web")
    script = "\n".join(_read(name) for name in ("pixels.js", "page.js"))
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    html = environment.from_string(_read("page.html")).render(
        title=title,
        about=f"Made by manihot {about['manihot']} from {about['photographs']} photographs, model "
        f"{about['sha256'][:8]}. It holds onnxruntime-web {package['version']} (MIT licence, Microsoft).",
        runtime=_base64((runtime / SCRIPT).read_bytes()),
        wasm=_packed(runtime / WASM),
        model=_packed(model),
        test=_base64(photo),
        facts=json.dumps(facts).replace("<", "\\u003c"),
        script=script,
    )
    write_atomic(page, html)


def expected(model: Path, preprocess: Preprocess, photo: bytes, int8: bool) -> dict[str, Any]:
    """What the page's self-test compares with."""
    pixels = preprocess(preprocess.for_store(decode_photo(photo)))
    found = OnnxRunner(model)(pixels[None])
    return {
        "probabilities": found["probabilities"][0].astype(float).tolist(),
        "checksum": zlib.crc32(pixels.tobytes()),
        "embeddings": [float(f"{value:.7g}") for value in found["embeddings"][0]],
        "bound": INT8_BOUND if int8 else BOUND,
    }


def draw_test_photo() -> bytes:
    """A drawn leaf as JPEG, in no proportion that a resize divides evenly."""
    height, width = 423, 611
    down, across = np.mgrid[:height, :width].astype(np.float32)
    rgb = np.stack([90 + across / 12, 120 + down / 9, 60 + (across + down) / 20], axis=2).astype(np.uint8)
    cv2.ellipse(rgb, (300, 210), (240, 120), 20, 0, 360, (52, 128, 44), -1, cv2.LINE_AA)
    cv2.line(rgb, (80, 130), (525, 292), (150, 178, 90), 5, cv2.LINE_AA)
    rng = np.random.default_rng(7)
    for x, y, size in rng.integers((120, 120, 3), (480, 300, 16), (40, 3)):
        cv2.circle(rgb, (int(x), int(y)), int(size), (148, 120, 40), -1, cv2.LINE_AA)
    rgb = np.clip(rgb + rng.normal(0, 6, rgb.shape), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "JPEG", quality=85)
    return file.getvalue()


def _promise(about: dict[str, Any]) -> str:
    if about["sets"] is None:
        return ""
    share, of_each = round(100 * about["sets"]["coverage"]), about["sets"]["per_class"]
    which = " of each class" if of_each else ""
    return (
        f"Of photographs{which} like those it learned from, the classes named here include the right one for about "
        f"{share} in 100, looked at one by one."
    )


def _read(name: str) -> str:
    return (resources.files("manihot.export") / "page" / name).read_text(encoding="utf-8")


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _packed(path: Path) -> str:
    return _base64(gzip.compress(path.read_bytes(), 9, mtime=0))

"""The page for a phone: the model, its runtime and everything else, without a network.

One HTML file, or a folder for an https host with the same as an app that can be installed. The runtime is
onnxruntime-web (MIT), an npm package, whose plain WebAssembly part is copied. Decoding is the browser's; from there on
the pixels are brought to size by `page/pixels.js`, equal to the bit to `Preprocess`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import zlib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jinja2 import Environment, StrictUndefined
from PIL import Image

from manihot.errors import SettingsError
from manihot.export.pack import Packed, as_file, as_text, pack, pack_file
from manihot.networks.runner import OnnxRunner
from manihot.photos.decode import decode_photo
from manihot.photos.preprocess import Preprocess
from manihot.records.files import write_atomic
from manihot.records.readers import read_json
from manihot.settings.options import PLAIN_PAGE

VERSION = "1.30.0"  # of onnxruntime-web, with which the page is tested
SCRIPT, WASM = "dist/ort.wasm.bundle.min.mjs", "dist/ort-wasm-simd-threaded.wasm"
BOUND = 1e-3  # largest difference of a probability in the page's self-test: in fp32 it is below 1e-5
INT8_BOUND = 0.02  # of int8, where one activation that is rounded the other way shows
TITLE = PLAIN_PAGE.title  # which the page translates
LANGUAGES = ("en", "fr", "sw", "pt", "es")
# each imports only what stands before it
MODULES = (
    "unpack",
    "pixels",
    "quality",
    "answer",
    "zip",
    "model",
    "jpeg",
    "store",
    "returns",
    "words",
    "view",
    "history",
    "main",
)
SHARED_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
ONE_FILE = f"{SHARED_POLICY}; script-src 'unsafe-inline' blob: 'wasm-unsafe-eval'; img-src blob: data:"
OF_APP = (
    f"{SHARED_POLICY}; script-src 'self' blob: 'wasm-unsafe-eval'; img-src 'self' blob: data:; connect-src 'self'; "
    "manifest-src 'self'; worker-src 'self'"
)
OURS = "// An app of manihot"  # the first words of its service worker


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


@dataclass(frozen=True)
class Content:
    """What a page is made of. title: None for the translated one."""

    title: str | None
    facts: dict[str, Any]
    parts: dict[str, Packed]


def make_content(
    model: Path, about: dict[str, Any], runtime: Path, title: str = TITLE, advice: dict[str, Any] | None = None
) -> Content:
    """The content of a page.

    model: a file. about: what model.json says of it. runtime: of `find_runtime`. advice: of `advice.read_advice`.
    """
    photo, wasm = draw_test_photo(), runtime / WASM
    package = read_json(runtime / "package.json", "the package.json of onnxruntime-web")
    parts = {
        "runtime": pack((runtime / SCRIPT).read_bytes(), "lzma"),
        "wasm": pack_file(wasm, wasm.stat().st_mtime_ns, "lzma"),
        "model": pack(model.read_bytes(), "gzip"),
        "test": pack(photo, ""),
    }
    own = title if title != TITLE else None
    facts = {
        "title": own,
        "model": about["sha256"],
        **{name: about[name] for name in ("classes", "preprocess", "sets", "coverage", "unknown", "quality")},
        "test": expected(model, Preprocess.from_json(about["preprocess"]), photo, about.get("precision") == "int8"),
        "parts": {name: part.to_json() for name, part in parts.items()},
        "words": {name: json.loads(_read(f"words/{name}.json")) for name in LANGUAGES},
        "advice": advice,
        "about": {
            "manihot": about["manihot"],
            "photographs": about["photographs"],
            "model": about["sha256"][:8],
            "runtime": package["version"],
        },
    }
    return Content(own, facts, parts)


def write_page(page: Path, content: Content) -> None:
    """Write the page as one HTML file, atomically."""
    parts = {name: as_text(part.content) for name, part in content.parts.items()}
    write_atomic(page, as_file(_render(content, ONE_FILE, app=False, parts=parts, script=joined())))


def write_app(folder: Path, content: Content) -> None:
    """Write the page as a folder for an https host: a service worker keeps it for when there is no network.

    folder: that `check_app` lets pass.
    """
    files = {f"{name}.js": _read(f"{name}.js").encode() for name in MODULES}
    files |= {f"parts/{name}": part.content for name, part in content.parts.items()}
    files |= {f"icon-{size}.png": draw_icon(size) for size in (192, 512)}
    files["manifest.webmanifest"] = json.dumps(_manifest(content), ensure_ascii=False).encode()
    files["index.html"] = _render(content, OF_APP, app=True, parts={}, script="").encode()
    digest = hashlib.sha256()
    for name, one in sorted(files.items()):
        digest.update(name.encode() + b"\0" + hashlib.sha256(one).digest())
    kept = ["./", *(name for name in files if name != "index.html")]
    worker = _read("sw.js").replace("DIGEST", digest.hexdigest()[:16]).replace('"FILES"', json.dumps(kept))
    (folder / "parts").mkdir(parents=True, exist_ok=True)
    for name, one in files.items():
        write_atomic(folder / name, one)
    write_atomic(folder / "sw.js", worker)


def check_app(folder: Path) -> None:
    """SettingsError for a folder that holds something other than an app, or a file."""
    worker = folder / "sw.js"
    ours = worker.is_file() and worker.read_text(encoding="utf-8", errors="replace").startswith(OURS)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not ours):
        raise SettingsError(f"--app {folder}: it holds other files", "name a new folder, or one that --app has written")


def _manifest(content: Content) -> dict[str, Any]:
    title = content.title or TITLE
    icons = [{"src": f"icon-{n}.png", "sizes": f"{n}x{n}", "type": "image/png"} for n in (192, 512)]
    return {
        "name": title,
        "short_name": title if len(title) <= 12 else "manihot",
        "start_url": "./",
        "scope": "./",
        "display": "standalone",
        "background_color": "#fcfbf8",
        "theme_color": "#1d5233",
        "icons": icons,
    }


def _render(content: Content, policy: str, app: bool, parts: dict[str, str], script: str) -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    facts = json.dumps({**content.facts, "app": app}, ensure_ascii=False).replace("<", "\\u003c")
    return environment.from_string(_read("page.html")).render(
        title=content.title or TITLE,
        policy=policy,
        app=app,
        style=_read("style.css"),
        parts=parts,
        facts=facts,
        script=script,
    )


def joined(modules: tuple[str, ...] = MODULES) -> str:
    """The modules as one script."""
    script = "\n".join(_read(f"{name}.js") for name in modules)
    script = re.sub(r"^import \{[^}]*\} from '\./\w+\.js';\n", "", script, flags=re.M)
    return re.sub(r"^export (?=(async )?(function|const|class)\b)", "", script, flags=re.M)


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


def draw_icon(size: int) -> bytes:
    """A leaf on green, as PNG."""
    rgb = np.full((512, 512, 3), (29, 82, 51), np.uint8)
    for angle in (-90, -40, -140, 5, -185):
        end = np.array([256, 330]) + 150 * np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle))])
        middle = (np.array([256, 330]) + end) / 2
        cv2.ellipse(rgb, middle.astype(int).tolist(), (84, 30), angle, 0, 360, (196, 228, 160), -1, cv2.LINE_AA)
    cv2.line(rgb, (256, 330), (256, 430), (196, 228, 160), 14, cv2.LINE_AA)
    file = io.BytesIO()
    Image.fromarray(cv2.resize(rgb, (size, size), interpolation=cv2.INTER_AREA)).save(file, "PNG", optimize=True)
    return file.getvalue()


def _read(name: str) -> str:
    return (resources.files("manihot.export") / "page" / name).read_text(encoding="utf-8")

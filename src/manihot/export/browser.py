"""The phone page in a real Chromium without a window and without a network: what it makes of photographs."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from manihot.export.bundle import Bundle
from manihot.export.witness import Seen

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATIENCE = 180_000  # milliseconds for a photograph

# checksum (CRC-32) and answer of one file, by what the page gives out under `manihot`; the input in base64, as a list
# of its numbers takes seconds to hand over
LOOK = """async name => {
  const text = bytes => {
    let all = '';
    for (let k = 0; k < bytes.length; k += 32768) all += String.fromCharCode(...bytes.subarray(k, k + 32768));
    return btoa(all);
  };
  const file = document.getElementById('manihot-certificate').files[0];
  try {
    const pixels = await manihot.decode(file), found = await manihot.classify(file);
    return {
      decoded: manihot.crc32(pixels.data), h: found.input.h, w: found.input.w, input: text(found.input.data),
      probabilities: found.probabilities, raw: found.raw, set: found.held, strangeness: found.strangeness,
      faults: found.faults,
    };
  } catch (error) {
    return {fault: String(error.message || error)};
  }
}"""


def find_browser() -> tuple[str | None, str]:
    """A Chromium, and '' or why there is none to try the page in."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        return None, "no Chromium was found"
    if find_spec("playwright") is None:
        return None, "the package playwright, which drives Chromium, is not installed"
    return found, ""


def look_in_browser(page: Path, files: Sequence[Path], bundle: Bundle, browser: str) -> tuple[list[Seen], str]:
    """What the page makes of files, and the browser's version. bundle: of the model that the page holds."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        started = play.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        try:
            opened = started.new_context(offline=True).new_page()
            opened.set_default_timeout(PATIENCE)
            opened.goto(page.resolve().as_uri())
            opened.evaluate("manihot.ready", None)
            opened.evaluate(
                "() => { const i = document.createElement('input'); i.type = 'file'; i.id = 'manihot-certificate'; "
                "document.body.append(i); }"
            )
            found = []
            for file in files:
                opened.set_input_files("#manihot-certificate", str(file))
                found.append(_seen(opened.evaluate(LOOK, ""), bundle))
            return found, str(started.version)
        finally:
            started.close()


def _seen(told: dict[str, Any], bundle: Bundle) -> Seen:
    if "fault" in told:
        return Seen(fault=str(told["fault"])[:200])
    pixels = np.frombuffer(base64.b64decode(told["input"]), np.uint8).reshape(told["h"], told["w"], 3)
    faults = tuple(map(str, told["faults"]))
    held = None
    if told["set"] is not None:
        held = np.zeros(len(bundle.classes), dtype=bool)
        held[[int(k) for k in told["set"]]] = True
    raw, probabilities = (np.array(told[name], np.float64) for name in ("raw", "probabilities"))
    return Seen(int(told["decoded"]), pixels, bundle.decide(probabilities, raw, held, faults, told["strangeness"]))

"""What the tests share: where the real photographs are, if anywhere."""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from pathlib import Path

# Tiny networks: threads that wait for each other cost more than they give, above all on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from PIL import Image

from manihot.progress import speak
from phone_page import browser_of_pages, chromium, phone_export, runtime  # noqa: F401  (fixtures of several files)

speak()  # messages on standard error, as the command line shows them


def shared_data(name: str = "") -> Path:
    """The folder of real data: $MANIHOT_DATA, or `shared/data` beside the checkout; skips the test without it."""
    home = os.environ.get("MANIHOT_DATA")
    folder = Path(home) if home else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (folder / name).exists():
        pytest.skip(
            f"real data not present: {folder / name} (set MANIHOT_DATA to the folder that holds bracol/ and cassava/)"
        )
    return folder / name


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--shard 2/4`: the second quarter of a long selection. `--fuzz-inputs 500`: a longer campaign of tests/fuzz."""
    parser.addoption("--shard", metavar="I/N", help="every N-th of the chosen tests, from the I-th")
    parser.addoption("--fuzz-inputs", type=int, default=0, metavar="N", help="damaged inputs of each kind of file")


@pytest.fixture
def fuzz_inputs(request: pytest.FixtureRequest) -> int:
    """How many damaged inputs of each kind were asked for; 0 for the default: a few, in seconds."""
    return int(request.config.getoption("--fuzz-inputs"))


@pytest.hookimpl(trylast=True)  # after -m and -k have chosen
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what other shards run."""
    shard = config.getoption("--shard")
    if not shard:
        return
    try:
        number, count = map(int, shard.split("/"))
        if not 1 <= number <= count:
            raise ValueError
    except ValueError:
        raise pytest.UsageError(f"--shard {shard}: two numbers such as 2/4, the first from 1 to the second") from None
    config.hook.pytest_deselected(items=[one for k, one in enumerate(items) if k % count != number - 1])
    items[:] = items[number - 1 :: count]


CLASSES = ("blue spots", "green", "red")


@pytest.fixture(scope="session")
def small_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """45 photographs of 48 x 64 in three class folders that a tiny network can learn, and two broken files."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for k, name in enumerate(CLASSES):
        (folder / name).mkdir()
        for i in range(15):
            picture = rng.integers(40, 120, (48, 64, 3))
            picture[..., k] += 90
            Image.fromarray(picture.astype(np.uint8)).save(folder / name / f"{name[:1]}{i:02d}.jpg", quality=90)
    (folder / "red" / "empty.jpg").write_bytes(b"")
    (folder / "green" / "page.jpg").write_text("<html></html>", encoding="utf-8")
    return folder


TINY_RECIPE = """
method: finetune
audit: {embeddings: false}
folds: {n: 2}
photo: {size: [32, 48], store_scale: 1.2}
model: {backbone: test_efficientnet, pretrained: false, dropout: 0.1}
augment:
  - {name: random_resized_crop, scale: [0.6, 1.0]}
  - {name: horizontal_flip}
  - {name: color_jitter, brightness: 0.1}
mixing:
  - {name: mixup, alpha: 0.2, p: 0.3}
loss: {name: cross_entropy, smoothing: 0.1}
optimizer: {name: adamw, lr: 3.0e-3}
averaging: {name: ema, decay: 0.9}
train: {epochs: 3, batch: 8, precision: fp32}
tta: [{name: full}, {name: full, flip: h}]
"""


@pytest.fixture
def tiny_recipe(tmp_path: Path) -> Path:
    """Fine-tuning of a tiny random network: seconds."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY_RECIPE, encoding="utf-8")
    return path


# A package of an extra: what the test files that need it import.
OF_EXTRAS = {"torch": r"torch|timm|manihot\.train|tiny_member", "fastapi": "fastapi|httpx|test_serve"}


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Where torch isn't installed, leave out the files that import it: what is left runs on the core alone."""
    if collection_path.suffix != ".py":
        return None
    text = collection_path.read_text(encoding="utf-8")
    lacking = [names for package, names in OF_EXTRAS.items() if find_spec(package) is None]
    return True if any(re.search(rf"^(import|from) ({names})\b", text, re.M) for names in lacking) else None

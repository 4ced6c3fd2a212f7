"""A member of a run with a few small photographs that a tiny network can learn: for tests of training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from manihot.members.member import Member, make_member
from manihot.records.manifest import Manifest
from manihot.records.run_folder import RunFolder
from manihot.settings import load_recipe
from manihot.train.toolbox import torch_toolbox

CLASSES = ("red", "green", "blue")

TOOLS = torch_toolbox(torch.device("cpu"))


def draw_photos(folder: Path, each: int = 8, unlabelled: int = 6, test: int = 3, seed: int = 0) -> Manifest:
    """`each` photographs of 40 x 48 a class in two folds; of source 'field' without a label; and of the split 'test'.

    A class shows in one colour. The column `truth` holds what the unlabelled and test photographs show.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(3 * each + unlabelled + test):
        shows, kind = number % 3, "main"
        if number >= 3 * each:
            kind = "field" if number < 3 * each + unlabelled else "test"
        pixels = rng.integers(40, 120, (40, 48, 3))
        pixels[..., shows] += 90
        name = f"{kind}{number:03d}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
        known = kind == "main"
        rows.append(
            {
                "image_id": name,
                "path": name,
                "label": shows if known else -1,
                "fold": number // 3 % 2 if known else -1,
                "source": "field" if kind == "field" else "main",
                "split": "test" if kind == "test" else "train",
                "height": 40,
                "width": 48,
                "truth": shows,
            }
        )
    return Manifest.from_table(pd.DataFrame(rows), CLASSES, folder)


def tiny_member(
    home: Path, recipe: Path, sets: tuple[str, ...] = (), manifest: Manifest | None = None, name: str = "main"
) -> Member:
    """A member of a run in `home`, by a recipe file with overrides; its own photographs where none are given."""
    manifest = manifest or draw_photos(home / "photos")
    loaded = load_recipe(str(recipe), ["photo.size=[32,32]", *sets])
    return make_member(RunFolder(home / "run"), name, loaded.member_recipes()[name], manifest, TOOLS, 1)

"""manihot: from a folder of field photographs with imperfect labels to a trustworthy, phone-ready classifier.

The Python functions mirror the commands of the command line. Names are looked up on first use, so that
`import manihot` doesn't load torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Manifest": "manihot.records.manifest",
    "Predictions": "manihot.records.predictions",
    "RunFolder": "manihot.records.run_folder",
    "Recipe": "manihot.settings",
    "load_recipe": "manihot.settings",
    "scan": "manihot.photos.scan",
    "make_demo": "manihot.demo.make",
    "run": "manihot.pipeline",
    "predict": "manihot.engines",
    "load_model": "manihot.infer.models",
}
__all__ = ["__version__", *_HOMES]

if TYPE_CHECKING:
    from manihot.demo.make import make_demo as make_demo
    from manihot.engines import predict as predict
    from manihot.infer.models import load_model as load_model
    from manihot.photos.scan import scan as scan
    from manihot.pipeline import run as run
    from manihot.records.manifest import Manifest as Manifest
    from manihot.records.predictions import Predictions as Predictions
    from manihot.records.run_folder import RunFolder as RunFolder
    from manihot.settings import Recipe as Recipe
    from manihot.settings import load_recipe as load_recipe


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'manihot' has no attribute {name!r}")

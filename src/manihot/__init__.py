"""manihot: from a folder of field photographs with imperfect labels to a trustworthy, phone-ready classifier.

Every verb of the command line is a function here, with the same name, options and defaults. Names are looked up on
first use, so that `import manihot` loads nothing heavy.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

_HOMES = {
    "verbs.photos": ("scan", "demo_data", "audit", "clean", "watch"),
    "verbs.models": (
        "run",
        "predict",
        "compare",
        "report",
        "share",
        "export",
        "show_augment",
        "explain",
        "lr_find",
        "translate",
    ),
    "verbs.losses": ("show_losses",),
    "verbs.notes": ("note",),
    "verbs.priors": ("probe_prior", "reweight"),
    "verbs.scale": ("prepare", "train"),
    "verbs.predictions": ("blend", "stack", "calibrate", "decide", "check_submission"),
    "verbs.review": ("review",),
    "verbs.serve": ("serve",),
    "verbs.recipes": ("recipes", "show_recipe", "suite"),
    "settings.options": (
        "TableOptions",
        "Compute",
        "CleaningRules",
        "ReviewTeam",
        "BlendOptions",
        "ArmOptions",
        "Translation",
        "NetworkChoice",
        "PageOptions",
        "TranslatedPictures",
        "ServerOptions",
    ),
    "errors": ("ManihotError",),
    "records.manifest": ("Manifest",),
    "records.predictions": ("Predictions",),
    "records.run_folder": ("RunFolder",),
    "settings": ("Recipe", "load_recipe"),
    "infer.models": ("load_model",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}
__all__ = ["__version__", *_HOME]

if TYPE_CHECKING:
    from manihot.errors import ManihotError as ManihotError
    from manihot.infer.models import load_model as load_model
    from manihot.records.manifest import Manifest as Manifest
    from manihot.records.predictions import Predictions as Predictions
    from manihot.records.run_folder import RunFolder as RunFolder
    from manihot.settings import Recipe as Recipe
    from manihot.settings import load_recipe as load_recipe
    from manihot.settings.options import ArmOptions as ArmOptions
    from manihot.settings.options import BlendOptions as BlendOptions
    from manihot.settings.options import CleaningRules as CleaningRules
    from manihot.settings.options import Compute as Compute
    from manihot.settings.options import NetworkChoice as NetworkChoice
    from manihot.settings.options import PageOptions as PageOptions
    from manihot.settings.options import ReviewTeam as ReviewTeam
    from manihot.settings.options import ServerOptions as ServerOptions
    from manihot.settings.options import TableOptions as TableOptions
    from manihot.settings.options import TranslatedPictures as TranslatedPictures
    from manihot.settings.options import Translation as Translation
    from manihot.verbs.losses import show_losses as show_losses
    from manihot.verbs.models import compare as compare
    from manihot.verbs.models import explain as explain
    from manihot.verbs.models import export as export
    from manihot.verbs.models import lr_find as lr_find
    from manihot.verbs.models import predict as predict
    from manihot.verbs.models import report as report
    from manihot.verbs.models import run as run
    from manihot.verbs.models import share as share
    from manihot.verbs.models import show_augment as show_augment
    from manihot.verbs.models import translate as translate
    from manihot.verbs.notes import note as note
    from manihot.verbs.photos import audit as audit
    from manihot.verbs.photos import clean as clean
    from manihot.verbs.photos import demo_data as demo_data
    from manihot.verbs.photos import scan as scan
    from manihot.verbs.photos import watch as watch
    from manihot.verbs.predictions import blend as blend
    from manihot.verbs.predictions import calibrate as calibrate
    from manihot.verbs.predictions import check_submission as check_submission
    from manihot.verbs.predictions import decide as decide
    from manihot.verbs.predictions import stack as stack
    from manihot.verbs.priors import probe_prior as probe_prior
    from manihot.verbs.priors import reweight as reweight
    from manihot.verbs.recipes import recipes as recipes
    from manihot.verbs.recipes import show_recipe as show_recipe
    from manihot.verbs.recipes import suite as suite
    from manihot.verbs.review import review as review
    from manihot.verbs.scale import prepare as prepare
    from manihot.verbs.scale import train as train
    from manihot.verbs.serve import serve as serve


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"manihot.{_HOME[name]}"), name)
    raise AttributeError(f"module 'manihot' has no attribute {name!r}")


class _Room(ModuleType):
    """A room that has a verb's name, as `manihot.train`: once imported it hides the verb, so it answers for it."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return __getattr__(self.__name__.rpartition(".")[2])(*args, **kwargs)

    @property
    def __wrapped__(self) -> Any:  # what inspect.signature and help follow
        return __getattr__(self.__name__.rpartition(".")[2])


class _Package(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        if name in _HOME and type(value) is ModuleType:
            value.__class__ = _Room
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

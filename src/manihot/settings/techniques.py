"""The names of all registries, so that a recipe can be checked without torch and without loading what they hold.

Each registry is a dict at the foot of its module; `tests/test_techniques.py` holds that the names here are its names,
in its order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from manihot.errors import SettingsError
from manihot.settings.kinds import suggest

TECHNIQUES: dict[str, tuple[str, ...]] = {
    "augmentation": (
        "random_resized_crop",
        "resize",
        "center_crop",
        "random_crop",
        "horizontal_flip",
        "vertical_flip",
        "transpose",
        "rotate90",
        "rotate",
        "shift_scale_rotate",
        "affine",
        "perspective",
        "piecewise_affine",
        "elastic",
        "optical_distortion",
        "grid_distortion",
        "brightness_contrast",
        "hue_saturation_value",
        "rgb_shift",
        "color_jitter",
        "fancy_pca",
        "to_gray",
        "gamma",
        "clahe",
        "auto_contrast",
        "equalize",
        "posterize",
        "solarize",
        "sharpen",
        "emboss",
        "blur",
        "gaussian_blur",
        "median_blur",
        "motion_blur",
        "gauss_noise",
        "jpeg",
        "downscale",
        "superpixels",
        "coarse_dropout",
        "cutout",
        "random_erasing",
        "grid_mask",
        "rand_augment",
        "one_of",
        "compose",
    ),
    "mix": ("none", "mixup", "cutmix", "fmix", "snapmix", "resizemix", "cutout", "mixup_without_hesitation"),
    "loss": (
        "cross_entropy",
        "label_smoothing",
        "focal",
        "focal_of_mean",
        "focal_cosine",
        "cosine_focal",
        "symmetric_ce",
        "taylor_ce",
        "taylor_series_ce",
        "bi_tempered",
        "nce",
        "rce",
        "gce",
        "nce_rce",
        "forward_correction",
        "backward_correction",
        "gjs",
        "isda",
        "triplet",
        "distillation",
        "elr",
        "sop",
        "class_balanced",
        "combo",
    ),
    "optimiser": ("adam", "adamw", "adamp", "adamp_nesterov", "nadam", "radam", "ranger", "sgd", "sgdp"),
    "schedule": ("constant", "cosine", "cosine_restarts", "inverse_epoch", "step", "multistep", "one_cycle", "plateau"),
    "averaging": ("none", "ema", "swa"),
    "step": ("supervised", "fixmatch", "co_teaching", "dividemix"),
    "sampling": ("each_once", "oversample", "undersample", "balanced"),
    "labels": ("given", "pseudo", "oof", "teacher", "clusters", "checked"),
    "negatives": ("none", "source", "drawn", "blurred", "mixed"),
    "pooling": ("avg", "max", "avgmax", "gem"),
    "tile attention": ("linear", "tanh"),
    "view": (
        "full",
        "centre",
        "top_left",
        "top_right",
        "bottom_left",
        "bottom_right",
        "random",
        "random_resized",
        "one_of",
    ),
    "mean": ("arithmetic", "geometric", "power", "rank"),
    "search": (
        "uniform",
        "best_member",
        "best_subset",
        "greedy",
        "simplex",
        "nelder_mead",
        "differential_evolution",
        "subset_evolution",
        "optuna",
    ),
    "stacker": ("logistic", "lightgbm", "mlp", "cnn1d", "cnn2d"),
}
SET_OTHERWISE = {  # what is taken for an optimiser and goes with any
    "sam": "optimizer.sam: 0.05 beside the name of an optimiser",
    "asam": "optimizer.sam: 0.5 and optimizer.sam_adaptive: true beside the name of an optimiser",
    "lookahead": "optimizer.lookahead: 6 beside the name of an optimiser",
}
OPTIMIZER_PACKAGE = "pytorch_optimizer"  # whose optimisers are named `pytorch_optimizer:NAME`


def check_name(kind: str, name: Any, where: str) -> None:
    """SettingsError for a technique that doesn't exist; kind: a key of TECHNIQUES."""
    known = TECHNIQUES[kind]
    if name in known:
        return
    said = "are no" if kind in ("labels", "negatives") else "is no"
    raise SettingsError(f"{where}: there {said} {kind} {name!r}", suggest(str(name), known))


def check_optimizer(name: str, where: str) -> None:
    """SettingsError for what is neither one of our optimisers nor, by its form, one of the package's."""
    if name.casefold() in SET_OTHERWISE:
        remedy = f"set {SET_OTHERWISE[name.casefold()]}"
        raise SettingsError(f"{where}: {name!r} is not an optimiser but goes with any", remedy)
    if name.partition(":")[:2] != (OPTIMIZER_PACKAGE, ":"):
        check_name("optimiser", name, where)


def named_within(choice: Mapping[str, Any]) -> Iterator[str]:
    """The names of a loss or mix and of those inside it, under `terms` and `inner`."""
    terms = choice.get("terms")
    for one in [choice.get("name"), choice.get("inner"), *(terms if isinstance(terms, (list, tuple)) else ())]:
        if isinstance(one, Mapping):
            yield from named_within(one)
        elif isinstance(one, str):
            yield one

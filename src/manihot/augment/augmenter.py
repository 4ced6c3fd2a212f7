"""Augmentation of one photograph: a recipe's list of operations, uint8 RGB in, uint8 RGB of the model's size
out.

Three families share the registry AUGMENTS. Geometric operations that follow each other, bends included, become one
sampling of the photograph at the final size; colour operations become one 3x4 matrix, which is left over for the device
when no pixel operation comes after it; pixel operations (blurs, noise, erasing, ...) work on the pixels where
they stand. Geometry and colour wait for each other, as they commute. Everything drawn comes from
`numpy.random.default_rng([seed, epoch, index])`, so the number of workers changes nothing.

Put operations on pixels after the crop: before it they work on the whole photograph, which costs more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from pydantic import Field, ValidationError, field_validator

from manihot.augment import colour, distort, erase, filters, geometry, randaugment, tone
from manihot.augment.canvas import Canvas, Op
from manihot.augment.resample import Size
from manihot.errors import DataError, SettingsError
from manihot.photos.preprocess import Preprocess, Unresized
from manihot.settings import Choice, suggest


class Compose(Op):
    """Several operations, one after the other, each with its own probability."""

    p: float = Field(1.0, ge=0, le=1, description="probability of the whole list")
    choices: tuple[Op, ...] = Field(min_length=1, description="operations with their settings")

    @field_validator("choices", mode="before")
    @classmethod
    def _built(cls, choices: Any) -> Any:
        return build_ops(choices)

    def run_always(self, canvas: Canvas, rng: np.random.Generator) -> None:
        for op in self.choices:
            op.run(canvas, rng)


class OneOf(Compose):
    """One of several operations, drawn with their p as weights; the drawn one is applied for certain."""

    p: float = Field(0.5, ge=0, le=1, description="probability that one is applied")

    def run_always(self, canvas: Canvas, rng: np.random.Generator) -> None:
        weights = np.cumsum([op.chance(canvas.epoch, canvas.epochs) for op in self.choices])
        drawn = rng.random() * weights[-1]
        if weights[-1] > 0:
            self.choices[int(np.searchsorted(weights, drawn, side="right"))].run_always(canvas, rng)


class Augmenter:
    """A recipe's augmentations for one model input; picklable, and the same in every worker.

    choices: the recipe's list. size: (height, width) of the model's input. seed: the run's. epochs: length of
    the training, which `strength` schedules refer to. fit: how what no operation has brought to size is brought to it.
    Raises SettingsError on an unknown operation or setting.
    """

    def __init__(self, choices: Sequence[Choice], size: Size, seed: int, epochs: int, fit: str = "squash") -> None:
        self.ops, self.fit = build_ops(choices), fit
        self.size = (int(size[0]), int(size[1]))
        self.seed, self.epochs = seed, max(1, epochs)

    def __call__(self, photo: np.ndarray | Unresized, epoch: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Pixels (h, w, 3) uint8 and the colour matrix (3, 4) float32 that the device still has to apply.

        photo: uint8 (H, W, 3), left as it is; an unresized one gives the crop that its stored copy would give, and
        is resized once. epoch: from 0. index: the photograph's place in the manifest.
        The matrix acts on RGB levels 0..255 (last column added); clip to 0..255 after it, then normalise.
        Raises DataError when the photograph is not uint8 RGB.
        """
        pixels, matrix, _ = self._augment(photo, epoch, index, None)
        return pixels, matrix

    def explain(
        self, photo: np.ndarray | Unresized, epoch: int, index: int
    ) -> tuple[np.ndarray, list[tuple[str, dict[str, Any]]]]:
        """The same picture with its colours applied, uint8, and [(operation, what it drew), ...] in order."""
        notes: list[tuple[Op, dict[str, Any]]] = []
        pixels, matrix, notes = self._augment(photo, epoch, index, notes)
        names = {op: name for name, op in AUGMENTS.items()}
        return apply_colour(pixels, matrix), [(names[type(op)], values) for op, values in notes]

    def _augment(
        self, photo: np.ndarray | Unresized, epoch: int, index: int, notes: Any
    ) -> tuple[np.ndarray, np.ndarray, Any]:
        rgb = photo.rgb if isinstance(photo, Unresized) else photo
        if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or 0 in rgb.shape:
            raise DataError(f"photograph {index}: expected uint8 RGB (H, W, 3), got {rgb.dtype} {rgb.shape}")
        rng = np.random.default_rng([self.seed, epoch, index])
        canvas = Canvas(photo, self.size, min(epoch, self.epochs - 1), self.epochs, notes)
        for op in self.ops:
            op.run(canvas, rng)
        if canvas.size != self.size:
            canvas.warp(*geometry.fit_whole(self.fit, canvas.size, self.size))
        canvas.flush_geometry()
        pixels = np.ascontiguousarray(canvas.pixels)
        if np.may_share_memory(pixels, rgb):
            pixels = pixels.copy()
        left = np.eye(3, 4) if canvas.colour is None else canvas.colour
        return pixels, left.astype(np.float32), notes


def apply_colour(rgb: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """uint8 (h, w, 3) through a colour matrix (3, 4), rounded and clipped to uint8."""
    flat = rgb.reshape(-1, 3).astype(np.float32) @ matrix[:, :3].T + matrix[:, 3]
    found: np.ndarray = np.clip(np.rint(flat), 0, 255).astype(np.uint8).reshape(rgb.shape)
    return found


def as_input(
    pixels: np.ndarray, matrix: np.ndarray, preprocess: Preprocess, out: np.ndarray | None = None
) -> np.ndarray:
    """What an Augmenter gives as the model's input float32 (h, w, 3), for training loops that want floats of a loader.

    Colour, clip and normalisation as `infer.runners.Normalise` does them for a batch on the device, to within 1e-5:
    here they are one matrix, so the last digits may differ. `fit` doesn't use it. out: where the result goes.
    """
    mean, std = (255 * np.array(one, np.float64) for one in (preprocess.mean, preprocess.std))
    whole = matrix / std[:, None]
    whole[:, 3] -= mean / std
    height, width = pixels.shape[:2]
    out = np.empty((height, width, 3), np.float32) if out is None else out
    cv2.transform(pixels.astype(np.float32), whole.astype(np.float32), dst=out)
    low, high = (np.tile(((end - mean) / std).astype(np.float32), width) for end in (0, 255))
    rows = out.reshape(height, width * 3)  # long rows: numpy is slow where the last axis holds three numbers
    np.minimum(np.maximum(rows, low, out=rows), high, out=rows)
    return out


def build_ops(choices: Any) -> tuple[Op, ...]:
    """Operations from a recipe's list (Choice, mappings with `name`, bare names, or operations already
    built).

    Raises SettingsError that names the operation, the setting and the nearest right name.
    """
    if not isinstance(choices, list | tuple):
        raise SettingsError(
            f"augment: expected a list of operations, got {choices!r}", "write one `- name: ...` per line"
        )
    return tuple(_build(choice) for choice in choices)


def _build(choice: Any) -> Op:
    if isinstance(choice, Op):
        return choice
    settings = {"name": choice} if isinstance(choice, str) else choice
    if isinstance(choice, Choice):
        settings = {"name": choice.name, **choice.settings}
    if not isinstance(settings, dict) or "name" not in settings:
        raise SettingsError(f"augment: {choice!r} has no name", "write `- name: rotate` and its settings below it")
    name, settings = str(settings["name"]), {k: v for k, v in settings.items() if k != "name"}
    if name not in AUGMENTS:
        raise SettingsError(f"augment: there is no augmentation {name!r}", suggest(name, list(AUGMENTS)))
    try:
        return AUGMENTS[name].model_validate(settings)
    except ValidationError as error:
        problem = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        raise SettingsError(f"augment: {name} has no setting {key!r}", suggest(key, list(AUGMENTS[name].model_fields)))
    about = AUGMENTS[name].model_fields.get(str(problem["loc"][0]) if problem["loc"] else "")
    said = problem["msg"].removeprefix("Value error, ")
    raise SettingsError(
        f"augment: {name}{f', {key}' if key else ''}: {said} (got {problem.get('input')!r})",
        f"{problem['loc'][0]}: {about.description}" if about else "",
    )


AUGMENTS: dict[str, type[Op]] = {
    "random_resized_crop": geometry.RandomResizedCrop,
    "resize": geometry.Resize,
    "center_crop": geometry.CenterCrop,
    "random_crop": geometry.RandomCrop,
    "horizontal_flip": geometry.HorizontalFlip,
    "vertical_flip": geometry.VerticalFlip,
    "transpose": geometry.Transpose,
    "rotate90": geometry.Rotate90,
    "rotate": geometry.Rotate,
    "shift_scale_rotate": geometry.ShiftScaleRotate,
    "affine": geometry.Affine,
    "perspective": geometry.Perspective,
    "piecewise_affine": distort.PiecewiseAffine,
    "elastic": distort.Elastic,
    "optical_distortion": distort.OpticalDistortion,
    "grid_distortion": distort.GridDistortion,
    "brightness_contrast": colour.BrightnessContrast,
    "hue_saturation_value": colour.HueSaturationValue,
    "rgb_shift": colour.RGBShift,
    "color_jitter": colour.ColorJitter,
    "fancy_pca": colour.FancyPCA,
    "to_gray": colour.ToGray,
    "gamma": tone.Gamma,
    "clahe": tone.CLAHE,
    "auto_contrast": tone.AutoContrast,
    "equalize": tone.Equalize,
    "posterize": tone.Posterize,
    "solarize": tone.Solarize,
    "sharpen": filters.Sharpen,
    "emboss": filters.Emboss,
    "blur": filters.Blur,
    "gaussian_blur": filters.GaussianBlur,
    "median_blur": filters.MedianBlur,
    "motion_blur": filters.MotionBlur,
    "gauss_noise": filters.GaussNoise,
    "jpeg": filters.Jpeg,
    "downscale": filters.Downscale,
    "superpixels": filters.Superpixels,
    "coarse_dropout": erase.CoarseDropout,
    "cutout": erase.Cutout,
    "random_erasing": erase.RandomErasing,
    "grid_mask": erase.GridMask,
    "rand_augment": randaugment.RandAugment,
    "one_of": OneOf,
    "compose": Compose,
}

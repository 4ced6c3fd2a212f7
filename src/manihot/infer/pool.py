"""Several photographs of one plant as one answer, and what refuses a photograph."""

from __future__ import annotations

import numpy as np
import pandas as pd

from manihot.errors import SettingsError
from manihot.infer.forward import PhotoFiles
from manihot.photos.preprocess import Preprocess
from manihot.photos.quality import Measure, QualityLimits, measure_quality
from manihot.trust.conformal import ConformalSets, uniforms_from_ids
from manihot.trust.words import ASK, POOR


class MeasuredFiles(PhotoFiles):
    """Files whose quality is measured while they are predicted. faults: by row, of those that were read."""

    def __init__(self, files: PhotoFiles, preprocess: Preprocess, limits: QualityLimits) -> None:
        self.files, self.preprocess, self.limits = files, preprocess, limits
        self.values: dict[int, dict[Measure, float]] = {}

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> np.ndarray:
        photo = self.files[index]
        if index not in self.values:
            self.values[index] = measure_quality(self.preprocess(photo))
        return photo

    def faults(self) -> list[str]:
        """What is wrong with each photograph, names of FAULTS, '' where nothing is."""
        return [", ".join(self.limits.faults(self.values[row])) for row in range(len(self))]


def flag_poor(answers: pd.DataFrame, faults: list[str]) -> pd.DataFrame:
    """A table of answers with the column `quality`, and 'poor photograph' where something stands there."""
    poor = np.array([bool(one) for one in faults], dtype=bool)
    answer = np.where(poor, POOR, answers["answer"].to_numpy(dtype=object))
    return answers.assign(answer=answer, quality=faults)


def check_groups(groups: np.ndarray) -> None:
    """SettingsError where photographs don't say which of them belong together."""
    if not any(groups):
        raise SettingsError(
            "--pool group: no photograph says which others belong to it",
            "name the column of the plant with --group, or a pattern such as --group '{group}_*'",
        )


def pool_groups(
    answers: pd.DataFrame,
    groups: np.ndarray,
    probs: np.ndarray,
    raw: np.ndarray,
    classes: tuple[str, ...],
    sets: ConformalSets | None,
) -> pd.DataFrame:
    """One row per plant: the mean of the calibrated probabilities of its photographs that are not refused.

    answers: of each photograph, with image_id and answer. groups: (N,), '' for a photograph alone. probs, raw:
    calibrated and as the networks gave them, (N, K). Columns: group, photographs, used, answer, top, probability,
    could_be, and a probability per class. The set is that of the mean of `raw`.
    """
    ids, said = answers["image_id"].to_numpy(dtype=object), answers["answer"].to_numpy(dtype=object)
    names = np.where(groups == "", ids, groups)
    good = np.array([one in classes or one == ASK for one in said], dtype=bool)
    rows = []
    for name in dict.fromkeys(names):
        own = np.flatnonzero(names == name)
        used = own[good[own]]
        row = {"group": name, "photographs": len(own), "used": len(used)}
        if not len(used):
            reasons = ", ".join(dict.fromkeys(map(str, said[own])))
            rows.append({**row, "answer": reasons, "top": "", "probability": np.nan, "could_be": ""})
            continue
        mean = probs[used].mean(0)
        top = int(mean.argmax())
        could = [classes[top]]
        if sets is not None:
            held = sets.predict_sets(raw[used].mean(0, keepdims=True), uniforms_from_ids([str(name)]))[0]
            could = [classes[k] for k in np.flatnonzero(held)]
        answer = could[0] if len(could) == 1 else ASK
        row |= {"answer": answer, "top": classes[top], "probability": mean[top], "could_be": ", ".join(could)}
        rows.append({**row, **{f"c{k}": p for k, p in enumerate(mean)}})
    columns = ["group", "photographs", "used", "answer", "top", "probability", "could_be"]
    return pd.DataFrame(rows, columns=[*columns, *(f"c{k}" for k in range(len(classes)))])

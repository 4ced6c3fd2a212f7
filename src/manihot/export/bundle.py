"""An exported folder, opened: photographs in, answers out, with the refusals that the phone page has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, NonNegativeFloat, TypeAdapter

from manihot.errors import WeightsError
from manihot.networks.runner import OnnxRunner, Outputs
from manihot.photos.faults import PhotoFault
from manihot.photos.load import load_in_full, load_photo
from manihot.photos.preprocess import Preprocess
from manihot.photos.quality import IN_WORDS, Measure, QualityLimits, Saved, measure_quality
from manihot.records.export_folder import ExportFolder
from manihot.records.files import digest_file
from manihot.records.readers import ClassNames, read_record
from manihot.trust.words import ASK, NOT_OF_THIS_KIND, POOR

AGAIN = "export the run again"
Precision = Literal["fp32", "int8"]


class Unknown(BaseModel):
    """What tells photographs of another kind."""

    limit: NonNegativeFloat
    false_rejection: NonNegativeFloat
    why: str = ""


class Described(ClassNames):
    """The part of model.json that answering takes."""

    format: Literal[2]
    sha256: str
    preprocess: dict[str, Any]
    sets: dict[str, Any] | None
    unknown: Unknown | None
    quality: Saved | None
    int8: Described | None = None


@dataclass(frozen=True)
class Answer:
    """Of one photograph. probabilities: calibrated (K,); raw: before calibration.

    held: the classes that can't be ruled out, None for a model without prediction sets. faults: of the photograph,
    names of `manihot.photos.quality.FAULTS`. strangeness: above 1 for a photograph of another kind; None where nothing
    tells. answer: a class, or 'ask an expert', 'poor photograph', 'not a photograph of this kind'.
    """

    probabilities: np.ndarray
    raw: np.ndarray
    held: tuple[str, ...] | None
    faults: tuple[str, ...]
    strangeness: float | None
    answer: str

    @property
    def refused(self) -> str:
        """Why the photograph is not answered, in words; '' where it is."""
        if self.faults:
            return " and ".join(IN_WORDS[name] for name in self.faults)
        return self.answer if self.answer == NOT_OF_THIS_KIND else ""

    def to_json(self) -> dict[str, Any]:
        """Plain values, probabilities with six digits."""
        return {
            "answer": self.answer,
            "refused": self.refused,
            "faults": list(self.faults),
            "held": None if self.held is None else list(self.held),
            "probabilities": [round(float(p), 6) for p in self.probabilities],
            "strangeness": None if self.strangeness is None else round(self.strangeness, 6),
        }


class Bundle:
    """The model of an exported folder, in single precision or int8.

    classes, numbers: as in model.json. preprocess: how a photograph becomes the input. runner: the network itself.
    """

    def __init__(self, about: Described, preprocess: Preprocess, runner: OnnxRunner) -> None:
        self.about, self.preprocess, self.runner = about, preprocess, runner
        self.classes, self.numbers = about.classes, about.numbers
        saved = about.quality
        self.limits = None if saved is None else QualityLimits(saved.measures, saved.refused, saved.photographs)

    @classmethod
    def load(cls, folder: Path, precision: Precision | None = None, threads: int = 0, device: str = "cpu") -> Bundle:
        """Open what `manihot export` wrote. precision: fp32 where there is one, when left out.

        Raises WeightsError where the folder holds no exported model, or another one than its model.json describes.
        """
        place = ExportFolder(Path(folder))
        about = read_record(place.about, Described, "the model.json of an exported model", AGAIN, WeightsError)
        chosen = precision or ("fp32" if place.model.is_file() else "int8")
        file, own = (place.model, about) if chosen == "fp32" else (place.small, about.int8)
        if own is None or not file.is_file():
            raise WeightsError(f"{folder}: there is no {file.name} here", AGAIN)
        if digest_file(file) != own.sha256:
            raise WeightsError(f"{file}: not the model that {place.about.name} describes (another sha256)", AGAIN)
        try:
            preprocess = TypeAdapter(Preprocess).validate_python(own.preprocess)
            preprocess.check()
        except ValueError as error:
            raise WeightsError(f"{place.about}: damaged preprocess ({error})", AGAIN) from error
        runner = OnnxRunner(file, threads, device)
        shapes = {one.name: one.shape for one in runner.session.get_outputs()}
        answered = {name: shapes.get(name, ("n", "none"))[1:] for name in ("logits", "probabilities")}
        if any(shape != [len(own.classes)] for shape in answered.values()):
            other = answered["probabilities"][0]
            raise WeightsError(
                f"{place.about}: {len(own.classes)} classes, but {file.name} answers with {other}", AGAIN
            )
        return cls(own, preprocess, runner)

    def prepare(self, photo: Path | bytes | np.ndarray, full: bool = True) -> np.ndarray:
        """A photograph, or its upright pixels uint8 (h, w, 3), as the network's input; raises PhotoFault.

        full: decoded at its full size, as the phone page does; False as a run does.
        """
        if isinstance(photo, np.ndarray):
            return self.preprocess(self.preprocess.for_store(photo))
        if full:
            return load_in_full(photo, self.preprocess)
        return self.preprocess(load_photo(photo, self.preprocess.for_store))

    def answer(self, pixels: np.ndarray, values: Sequence[Mapping[Measure, float]] | None = None) -> list[Answer]:
        """Answers to prepared photographs, uint8 (n, height, width, 3).

        values: of `measure_quality`, where they were measured elsewhere.
        """
        measured = [measure_quality(one) for one in pixels] if values is None and self.limits else values
        return self.judge(self.runner(pixels), measured)

    def judge(self, found: Outputs, values: Sequence[Mapping[Measure, float]] | None) -> list[Answer]:
        """Answers from what the network gave for n photographs, and the values of `measure_quality` of each."""
        raw = np.exp(found["logits"].astype(np.float64))
        return [
            self.decide(
                found["probabilities"][k].astype(np.float64),
                raw[k],
                found["held"][k].astype(bool) if "held" in found else None,
                self.limits.faults(values[k]) if self.limits is not None and values is not None else (),
                float(found["strangeness"][k]) if "strangeness" in found else None,
            )
            for k in range(len(raw))
        ]

    def decide(
        self,
        probabilities: np.ndarray,
        raw: np.ndarray,
        held: np.ndarray | None,
        faults: tuple[str, ...],
        strangeness: float | None,
    ) -> Answer:
        """The answer to one photograph. held: bool (K,)."""
        top = int(probabilities.argmax())
        names = None if held is None else tuple(self.classes[k] for k in np.flatnonzero(held))
        limit = self.about.unknown.limit if self.about.unknown is not None else np.inf
        if faults:
            answer = POOR
        elif strangeness is not None and strangeness > limit:
            answer = NOT_OF_THIS_KIND
        elif names is not None and len(names) != 1:
            answer = ASK
        else:
            answer = self.classes[top] if names is None else names[0]
        return Answer(probabilities, raw, names, faults, strangeness, answer)

    def classify(self, photos: Sequence[Path | bytes | np.ndarray]) -> list[Answer | PhotoFault]:
        """Answers to photographs; in the place of one that can't be read, what is wrong with it."""
        prepared: list[np.ndarray | PhotoFault] = []
        for photo in photos:
            try:
                prepared.append(self.prepare(photo))
            except PhotoFault as fault:
                prepared.append(fault)
        readable = [one for one in prepared if not isinstance(one, PhotoFault)]
        answers = iter(self.answer(np.stack(readable)) if readable else [])
        return [one if isinstance(one, PhotoFault) else next(answers) for one in prepared]

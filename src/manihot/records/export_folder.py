"""The names of the files in the folder that `manihot export` writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ExportFolder:
    """An exported model's folder; nothing is read or made."""

    path: Path

    @property
    def model(self) -> Path:
        """The network in single precision."""
        return self.path / "model.onnx"

    @property
    def small(self) -> Path:
        """The network in int8."""
        return self.path / "model.int8.onnx"

    @property
    def about(self) -> Path:
        """What whoever feeds the network must know."""
        return self.path / "model.json"

    @property
    def certificate(self) -> Path:
        """What was measured, for programs."""
        return self.path / "certificate.json"

    @property
    def page(self) -> Path:
        """What was measured, for people."""
        return self.path / "certificate.html"

    @property
    def card(self) -> Path:
        """The model card."""
        return self.path / "model-card.md"

    @property
    def examples(self) -> tuple[Path, Path]:
        """Programs that classify with it, in Python and in JavaScript."""
        return self.path / "example.py", self.path / "example.js"

    @property
    def choices(self) -> tuple[Path, Path]:
        """Which networks could be exported, as a table and a picture."""
        return self.path / "choices.csv", self.path / "choices.png"

    def is_one(self) -> bool:
        """Whether an exported model lies here."""
        return self.about.is_file() and (self.model.is_file() or self.small.is_file())

    def files(self) -> list[Path]:
        """All that an export may leave, whether it is there or not."""
        fixed = [self.model, self.small, self.about, self.certificate, self.page, self.card]
        return [*fixed, *self.examples, *self.choices]

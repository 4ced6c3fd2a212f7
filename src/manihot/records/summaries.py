"""The JSON files of a run that pages and leaderboards read: the record, scores, blend, audit and what-if.

Each is checked field by field before anything uses it, and given as the plain value that stands in the file. Fields
that are not named here are kept as they are.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt, model_validator

from manihot.errors import RunFolderError
from manihot.records.readers import AGAIN, read_json, reading

Share = Annotated[float, Field(ge=0, le=1)]


def _inside(name: str) -> str:
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise ValueError("leads out of the run folder")
    return name


class Open(BaseModel):
    """Fields beyond those named are allowed, as another version may have more."""

    model_config = ConfigDict(extra="allow", strict=True)


class StageEntry(Open):
    """What is known of a stage."""

    status: Literal["running", "done"]
    inputs: str = ""
    started: FiniteFloat | None = None
    seconds: FiniteFloat | None = None
    outputs: dict[Annotated[str, AfterValidator(_inside)], str] = {}


class RecipeOfRun(Open):
    """The resolved recipe, of any version; the parts that pages use."""

    name: str | None = None
    seed: int | None = None
    method: str | None = None
    refit: bool = False
    folds: dict[str, Any] | None = None
    members: dict[str, dict[str, Any]] | None = None


FORMAT = 2  # of run folders; raised whenever a folder of before can't be read
OLDEST = "0.1.0"  # the last release of manihot that read format 1, which run.json did not name


class RunRecord(Open):
    """run.json."""

    format: int
    recipe_name: str | None = None
    recipe: RecipeOfRun | None = None
    seed: int | None = None
    photos: list[str] | None = None
    scan_options: dict[str, str] | None = None
    versions: dict[str, str | None] = {}
    command: list[str] = []
    system: str | None = None
    device: str | None = None
    weights: list[list[str | bool]] | None = None
    stages: dict[str, StageEntry] = {}
    arms: dict[str, str] = {}
    finished: FiniteFloat | None = None


class Measured(Open):
    """A score with its interval; None where it is not defined."""

    value: FiniteFloat | None
    low: FiniteFloat | None = None
    high: FiniteFloat | None = None


class OfClass(Open):
    """Scores of one class."""

    class_: str = Field(alias="class")
    support: NonNegativeInt
    predicted: NonNegativeInt
    precision: Measured
    recall: Measured
    f1: Measured
    roc_auc: Measured


class Majority(Open):
    """The largest class."""

    class_: str = Field(alias="class")
    share: Share


class Bins(Open):
    """A reliability diagram."""

    count: list[NonNegativeInt]
    confidence: list[FiniteFloat | None]
    accuracy: list[FiniteFloat | None]

    @model_validator(mode="after")
    def _fit(self) -> Bins:
        if not len(self.count) == len(self.confidence) == len(self.accuracy):
            raise ValueError("lists of different lengths")
        return self


class Evaluation(Open):
    """What `metrics.evaluate` gives."""

    n: NonNegativeInt
    classes: list[str]
    metrics: dict[str, Measured]
    per_class: list[OfClass]
    confusion: list[list[NonNegativeInt]]
    reliability: Bins
    majority: Majority | None = None

    @model_validator(mode="after")
    def _fit(self) -> Evaluation:
        k = len(self.classes)
        if len(self.per_class) != k or [len(row) for row in self.confusion] != [k] * k:
            raise ValueError(f"tables that do not fit its {k} classes")
        if {row.class_ for row in self.per_class} - set(self.classes):
            raise ValueError("scores of a class that is not among its classes")
        if self.n and ("accuracy" not in self.metrics or self.metrics["accuracy"].value is None):
            raise ValueError("no accuracy")
        return self


class OfFold(Open):
    """The score of one fold."""

    accuracy: FiniteFloat | None
    n: NonNegativeInt | None = None


class MemberScores(Open):
    """A member's, or the ensemble's."""

    oof: Evaluation | None = None
    test: Evaluation | None = None
    folds: dict[Annotated[str, Field(pattern=r"^-?\d{1,6}$")], OfFold] = {}


class Scores(Open):
    """metrics.json."""

    best: str | None = None
    members: dict[str, MemberScores] = {}
    ensemble: MemberScores | None = None


class Group(Open):
    """Members that became one answer before the blend."""

    members: list[str]
    method: str
    mean: str = "arithmetic"
    stackers: list[str] = []
    weights: dict[str, FiniteFloat] | None = None
    accuracy: FiniteFloat = 0.0

    @model_validator(mode="after")
    def _fit(self) -> Group:
        if self.method not in ("stack", "uniform") and self.weights is None:
            raise ValueError(f"the method {self.method} without weights")
        return self


class Tried(Open):
    """A way of blending in nested cross-validation."""

    method: str
    is_gain: bool


class Difference(Open):
    """A gain with its interval."""

    value: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat


class Ranked(Open):
    """A subset of the members, averaged; `right` of the photographs that the subsets are ranked by."""

    members: list[str]
    right: NonNegativeInt
    accuracy: FiniteFloat


class Blended(Open):
    """blend.json."""

    members: list[str]
    classes: list[str] = []
    asked: str | None = None
    method: str
    mean: str = "arithmetic"
    weights: dict[str, FiniteFloat] | None = None
    groups: dict[str, Group] | None = None
    nested: list[Tried] | None = None
    subsets: list[Ranked] | None = None
    note: str | None = None
    folds: str | int | None = None
    accuracy: FiniteFloat | None = None
    plain_accuracy: FiniteFloat | None = None
    difference: Difference | None = None
    gain: bool | None = None

    @model_validator(mode="after")
    def _fit(self) -> Blended:
        if self.asked == "stack" and len(self.members) > 1 and self.method not in ("uniform", "fixed"):
            for name in ("folds", "accuracy", "plain_accuracy", "difference", "gain"):
                if getattr(self, name) is None:
                    raise ValueError(f"a stack without {name!r}")
        return self


class Evidence(Open):
    """What labels were judged by."""

    used: list[str]
    sources: list[str]
    missing: dict[str, str]


class Audited(Open):
    """audit.json."""

    judged: NonNegativeInt | None = None
    label_issues: NonNegativeInt | None = None
    evidence: Evidence | None = None


class WhatIf(Open):
    """what_if.json."""

    sentence: str
    level: Share | None = None
    run_folds: bool = False


class BurstEffect(Open):
    """bursts.json."""

    sentence: str


class Notes(Open):
    """notes.json: a leaderboard's scores of the run's submission as the leaderboard shows them, and a remark."""

    public: FiniteFloat | None = None
    private: FiniteFloat | None = None
    text: str = ""


def _checked(path: Path, model: type[BaseModel], what: str, remedy: str = AGAIN) -> dict[str, Any]:
    value = read_json(path, what, remedy)
    with reading(path, what, remedy, RunFolderError):
        model.model_validate(value)
        return dict(value)


def read_run_record(path: Path) -> dict[str, Any]:
    """run.json."""
    what = "the record of a run"
    remedy = "restore the file from a copy, or remove it and run the same command again"
    value = read_json(path, what, remedy)
    if isinstance(value, dict):
        _check_format(path, value)
    return _checked(path, RunRecord, what, remedy)


def read_stage_entry(path: Path) -> dict[str, Any]:
    """What a job noted of its stage, job.json."""
    return _checked(path, StageEntry, "a job's record of its stage", AGAIN)


def _check_format(path: Path, value: dict[str, Any]) -> None:
    """RunFolderError where a run is of another format, which says who reads it."""
    found = value.get("format", 1)
    versions = value.get("versions")
    made = versions.get("manihot") if isinstance(versions, dict) else None
    by = f"by manihot {made}" if isinstance(made, str) else "by another manihot"
    if isinstance(found, int) and found < FORMAT:
        raise RunFolderError(
            f"{path.parent} contains a run of format {found}, written {by}; this manihot reads format {FORMAT}",
            f"run the same command again with another --out, or open it with pip install manihot=={OLDEST}",
        )
    if isinstance(found, int) and found > FORMAT:
        raise RunFolderError(
            f"{path.parent} contains a run of format {found}, written {by}, which is newer; "
            f"this manihot reads format {FORMAT}",
            "pip install --upgrade manihot",
        )


def read_scores(path: Path) -> dict[str, Any]:
    """metrics.json."""
    return _checked(path, Scores, "the scores of a run")


def read_blended(path: Path) -> dict[str, Any]:
    """blend.json."""
    return _checked(path, Blended, "the record of a blend", "remove the folder it lies in and run again")


def read_audited(path: Path) -> dict[str, Any]:
    """audit.json."""
    return _checked(path, Audited, "the figures of an audit")


def read_burst_effect(path: Path) -> dict[str, Any]:
    """bursts.json."""
    return _checked(path, BurstEffect, "what bursts do to a score")


def read_notes(path: Path) -> Notes:
    """notes.json; empty where nothing was noted."""
    if not path.is_file():
        return Notes()
    return Notes.model_validate(_checked(path, Notes, "what was noted beside a run", "remove it and note it again"))


def read_what_if(path: Path) -> dict[str, Any]:
    """what_if.json."""
    return _checked(path, WhatIf, "the record of --what-if")

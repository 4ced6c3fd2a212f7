"""What the verbs return: one frozen record each, with the paths of what was written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manihot.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

    from manihot.records.manifest import Manifest
    from manihot.records.predictions import Predictions
    from manihot.records.summaries import Blended, MemberScores
    from manihot.review.agreement import Agreement
    from manihot.suites.format import Arm
    from manihot.trust.drift import DriftReport


@dataclass(frozen=True, kw_only=True)
class ScanResult:
    """Of `scan`. quarantine: one row per file that can't be read."""

    manifest: Manifest
    quarantine: pd.DataFrame
    path: Path


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """Of `demo_data`. truth: one row per file, with what was planted."""

    folder: Path
    truth: pd.DataFrame


@dataclass(frozen=True, kw_only=True)
class AuditResult:
    """Of `audit`. label_issues: how many of the `judged` labels look wrong; None where labels could not be judged."""

    page: Path
    judged: int | None
    label_issues: int | None
    scores: RunScores | None = None


@dataclass(frozen=True, kw_only=True)
class CleanResult:
    """Of `clean`. counts: photographs per class before and after."""

    counts: pd.DataFrame
    manifest: Path
    decisions: Path
    page: Path


@dataclass(frozen=True, kw_only=True)
class ReviewResult:
    """Of `review`. expected: wrong labels among the photographs of the page, None after a merge.

    After a merge photographs are those that two people or more answered, page is that of their disagreements, None
    where there are none, and alpha and pairs (name, name, kappa) say how far they agree.
    """

    page: Path | None
    photographs: int
    expected: float | None = None
    decisions: Path | None = None
    decided: int = 0
    disagreed: int = 0
    alpha: Agreement | None = None
    pairs: tuple[tuple[str, str, Agreement], ...] = ()


@dataclass(frozen=True, kw_only=True)
class RunScores:
    """Of `run`: scores of every member and of their ensemble; `best` is the name of the one that predicts."""

    out: Path
    best: str
    members: Mapping[str, MemberScores]
    ensemble: MemberScores | None
    report: Path
    smoke: bool = False


def run_scores(out: Path, found: Mapping[str, Any], smoke: bool = False) -> RunScores:
    """The content of metrics.json as a record."""
    from manihot.records.run_places import RunPlaces
    from manihot.records.summaries import Scores

    scores = Scores.model_validate(found)
    return RunScores(
        out=out,
        best=scores.best or "",
        members=scores.members,
        ensemble=scores.ensemble,
        report=RunPlaces(out).report,
        smoke=smoke,
    )


@dataclass(frozen=True, kw_only=True)
class JobList:
    """Of `prepare` and `train`: the state of jobs by name: 'done', 'running' or 'waiting'."""

    out: Path
    jobs: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class PredictResult:
    """Of `predict`."""

    predictions: Predictions
    path: Path


@dataclass(frozen=True, kw_only=True)
class WatchResult:
    """Of `watch`. exit_code: 0 for the same, 10 for moved, 11 for too few photographs to decide."""

    report: DriftReport
    page: Path

    @property
    def exit_code(self) -> int:
        """The exit code of the command line."""
        return self.report.exit_code


@dataclass(frozen=True, kw_only=True)
class Leaderboard:
    """Of `compare`: one row per run, member and split (`manihot.report.compare.COLUMNS`)."""

    table: pd.DataFrame


@dataclass(frozen=True, kw_only=True)
class NoteResult:
    """Of `note`: what is noted now; None and '' for nothing."""

    path: Path
    public: float | None
    private: float | None
    text: str


@dataclass(frozen=True, kw_only=True)
class SharesResult:
    """Of `probe_prior` and `reweight`. shares: a row per class with its share; None where no scores were given."""

    files: tuple[Path, ...]
    shares: pd.DataFrame | None


@dataclass(frozen=True, kw_only=True)
class PageResult:
    """Of `report`, `explain` and `show_augment`: the file that was written."""

    page: Path


@dataclass(frozen=True, kw_only=True)
class ShareResult:
    """Of `share`. files: names within the run folder. size: bytes of the zip."""

    path: Path
    files: tuple[str, ...]
    size: int


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """Of `export`. files: the networks, none without `out`. page, app: as named. certificate: what was measured."""

    files: tuple[Path, ...]
    page: Path | None
    app: Path | None
    certificate: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ServeResult:
    """Of `serve`, when it has ended. photographs: how many were classified. seconds: how long it ran."""

    photographs: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class LrFindResult:
    """Of `lr_find`. suggestion: the lower of the rate of steepest descent and a tenth of the one of least loss."""

    suggestion: float
    steepest: float
    tenth_of_minimum: float
    table: Path
    picture: Path


@dataclass(frozen=True, kw_only=True)
class TranslateResult:
    """Of `translate`. pictures: how many. joined: manifest of the photographs and the pictures."""

    pictures: int
    manifest: Path
    joined: Path
    samples: Path
    history: Path


@dataclass(frozen=True, kw_only=True)
class BlendResult:
    """Of `blend` and `stack`. cheaper: how many blends nothing beats in accuracy, seconds and bytes, where asked."""

    out: Path
    record: Blended
    cheaper: int | None = None


@dataclass(frozen=True, kw_only=True)
class CalibrateResult:
    """Of `calibrate`. kind: of the calibrator. Expected calibration errors before and after, held out."""

    path: Path
    photographs: int
    kind: str
    ece_before: float
    ece_after: float


@dataclass(frozen=True, kw_only=True)
class DecideResult:
    """Of `decide`. asked, changed: shares of photographs for an expert, and with another answer than the plain one."""

    decisions: Path
    photographs: int
    asked: float
    changed: float
    expected_cost: float | None


@dataclass(frozen=True, kw_only=True)
class SubmissionCheck:
    """Of `check_submission`. differences: in words. exit_code: 0 where there is none, 3 otherwise."""

    file: Path
    sample: Path
    differences: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """The exit code of the command line."""
        return DataError.exit_code if self.differences else 0


@dataclass(frozen=True, kw_only=True)
class SuiteResult:
    """Of `suite`: its arms, and what each did (`manihot.suites.run.COLUMNS`); no table where they are only listed."""

    arms: Mapping[str, Arm]
    table: pd.DataFrame | None = None
    page: Path | None = None


@dataclass(frozen=True, kw_only=True)
class RecipeAbout:
    """A recipe that comes with the package. source: where it is from; '' for manihot's own."""

    name: str
    description: str
    source: str


@dataclass(frozen=True, kw_only=True)
class RecipesResult:
    """Of `recipes`."""

    recipes: tuple[RecipeAbout, ...]

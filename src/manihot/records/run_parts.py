"""The folders inside a run folder: a fold, a member, the audit, the blend, trust and the review."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

WHOLE = -2  # in place of a fold's number: trained on everything, nothing was held out
REFITTED = "refit"  # folder beside a member's folds: its network that was trained on everything
BACKBONE = "backbone.onnx"  # of a member with the method `features`, shared by its heads
HEAD = "head.safetensors"  # a fold's linear head
NETWORK = "network.onnx"  # a fold's fine-tuned network
TORCH_NETWORK = "best.safetensors"  # the same as torch keeps it
JOB_RECORD = "job.json"  # in a fold's folder: what a job noted of it
SUBMISSION = "submission.csv"
OOF = ".oof.parquet"  # how the names of out-of-fold predictions end


@dataclass(frozen=True)
class FoldFolder:
    """members/NAME/foldK, or a member's `refit`, or one stage of a training in it."""

    path: Path

    @property
    def backbone(self) -> Path:
        """The member's backbone, which the heads of all its folds share."""
        return self.path.parent / BACKBONE

    @property
    def head(self) -> Path:
        """The linear head of a frozen backbone."""
        return self.path / HEAD

    @property
    def network(self) -> Path:
        """The fine-tuned network as ONNX."""
        return self.path / NETWORK

    @property
    def torch_network(self) -> Path:
        """The fine-tuned network as torch keeps it."""
        return self.path / TORCH_NETWORK

    def snapshot(self, epoch: int) -> Path:
        """The network after an epoch, counted from 0, where several epochs answer together."""
        return self.path / f"epoch{epoch}.safetensors"

    @property
    def oof(self) -> Path:
        """Predictions of what the fold holds out."""
        return self.path / "oof.parquet"

    @property
    def test(self) -> Path:
        """Predictions of the test photographs."""
        return self.path / "test.parquet"

    def view(self, kind: str, number: int) -> Path:
        """Predictions by one test-time view alone; kind: 'oof' or 'test'."""
        return self.path / f"{kind}.tta{number}.parquet"

    @property
    def inputs(self) -> Path:
        """Digest of what an unfinished training started from."""
        return self.path / "inputs.txt"

    @property
    def checkpoint(self) -> Path:
        """The state of a training after its last epoch."""
        return self.path / "last.ckpt"

    @property
    def history(self) -> Path:
        """Scores of each epoch, a line of JSON each."""
        return self.path / "history.jsonl"

    @property
    def margins(self) -> Path:
        """Margins of the labels while they were learned."""
        return self.path / "margins.parquet"

    def stage(self, number: int) -> FoldFolder:
        """A stage of the training, counted from 1, where there are several."""
        return FoldFolder(self.path / f"stage{number}")


@dataclass(frozen=True)
class MemberFolder:
    """members/NAME: a network for each fold, and what they share."""

    path: Path

    @property
    def name(self) -> str:
        """The member's name in the recipe."""
        return self.path.name

    @property
    def backbone(self) -> Path:
        """The frozen backbone that the heads share."""
        return self.path / BACKBONE

    def fold(self, number: int) -> FoldFolder:
        """The folder of a fold; WHOLE for the network trained on everything."""
        return FoldFolder(self.path / (REFITTED if number == WHOLE else f"fold{number}"))

    def torch_networks(self) -> dict[int, Path]:
        """The networks as torch keeps them, of the folds that have one."""
        return {fold: one.torch_network for fold, one in self.folds().items() if one.torch_network.is_file()}

    def folds(self) -> dict[int, FoldFolder]:
        """The folds that have a folder, by their numbers in order."""
        found = {
            int(path.name.removeprefix("fold")): FoldFolder(path)
            for path in self.path.glob("fold*")
            if path.name.removeprefix("fold").isdecimal() and path.is_dir()
        }
        return dict(sorted(found.items()))


@dataclass(frozen=True)
class AuditFolder:
    """audit/: tables as parquet and CSV, figures, and the thumbnails that duplicates are found with."""

    path: Path

    @property
    def summary(self) -> Path:
        """The figures that the page shows first."""
        return self.path / "audit.json"

    @property
    def what_if(self) -> Path:
        """Whether cleaning is worth it, in a sentence."""
        return self.path / "what_if.json"

    @property
    def bursts(self) -> Path:
        """What bursts do to the score."""
        return self.path / "bursts.json"

    @property
    def thumbnails(self) -> Path:
        """The folder of thumbnails and hashes."""
        return self.path / "thumbnails"

    @property
    def thumbnail_pictures(self) -> Path:
        """The thumbnails of all photographs."""
        return self.thumbnails / "thumbnails.npy"

    @property
    def thumbnail_table(self) -> Path:
        """Hashes and measurements of all photographs."""
        return self.thumbnails / "thumbnails.parquet"

    @property
    def duplicates_found(self) -> Path:
        """Duplicates as they were found, before there were folds."""
        return self.thumbnails / "duplicates.parquet"

    @property
    def embeddings(self) -> Path:
        """Embeddings by a frozen network, where the predictions hold none."""
        return self.path / "embeddings.parquet"

    def table(self, name: str) -> Path:
        """A table as parquet."""
        return self.path / f"{name}.parquet"

    def csv(self, name: str) -> Path:
        """The same table as CSV."""
        return self.path / f"{name}.csv"

    def both(self, name: str) -> list[Path]:
        """A table in both forms."""
        return [self.table(name), self.csv(name)]

    def mean_source(self, number: int) -> Path:
        """The mean photograph of a source."""
        return self.path / f"mean_source{number}.png"

    def mean_sources(self) -> list[Path]:
        """The mean photographs of all sources, by their numbers."""
        return sorted(self.path.glob("mean_source*.png"), key=lambda path: (len(path.name), path.name))


@dataclass(frozen=True)
class BlendFolder:
    """blend/: how the members became one answer; the same names in a folder given with --out."""

    path: Path

    @property
    def summary(self) -> Path:
        """What was done and what it is worth."""
        return self.path / "blend.json"

    @property
    def combination(self) -> Path:
        """How new photographs' predictions become one answer."""
        return self.path / "combination.npz"

    @property
    def diversity(self) -> Path:
        """How alike the members are, drawn."""
        return self.path / "diversity.png"

    @property
    def submission(self) -> Path:
        """The test photographs' classes by this blend."""
        return self.path / SUBMISSION

    def predictions(self, kind: str, stem: str = "blend") -> Path:
        """The blend's own; kind: 'oof' or 'test', stem: 'blend' or 'stack'."""
        return self.path / f"{stem}.{kind}.parquet"

    def clear(self) -> None:
        """Remove what an earlier blend left; other files of the folder stay."""
        kinds = ("oof", "test")
        tables = [self.path / f"{name}.csv" for name in ("members", "subsets", "nested", "diversity", "submission")]
        ours = [self.summary, self.combination, self.diversity, *map(self.predictions, kinds), *tables]
        for path in ours:
            path.unlink(missing_ok=True)


@dataclass(frozen=True)
class TrustFolder:
    """trust/: calibration, prediction sets, and the out-of-distribution detector; the same names with --out."""

    path: Path

    @property
    def summary(self) -> Path:
        """What calibration and sets are worth."""
        return self.path / "trust.json"

    @property
    def calibrator(self) -> Path:
        """The fitted calibration."""
        return self.path / "calibrator.json"

    @property
    def sets(self) -> Path:
        """The fitted conformal sets."""
        return self.path / "sets.json"

    @property
    def unknown(self) -> Path:
        """The out-of-distribution detector; names its files."""
        return self.path / "unknown.json"

    @property
    def quality(self) -> Path:
        """The limits of the quality gate."""
        return self.path / "quality.json"

    @property
    def reliability(self) -> Path:
        """The reliability diagram."""
        return self.path / "reliability.png"

    @property
    def calibrated(self) -> Path:
        """The calibrated out-of-fold predictions."""
        return self.path / f"calibrated{OOF}"

    def detector(self, fold: int | None) -> Path:
        """The detector of one fold's network; None for one that serves all."""
        return self.path / ("unknown.npz" if fold is None else f"unknown.fold{fold}.npz")

    def csv(self, name: str) -> Path:
        """A table: coverage, abstention, thresholds."""
        return self.path / f"{name}.csv"


@dataclass(frozen=True)
class ReviewFolder:
    """review/: what several reviewers answered, and how far they agree."""

    path: Path

    @property
    def database(self) -> Path:
        """The answers that a team gave on the server."""
        return self.path / "answers.sqlite"

    @property
    def decisions(self) -> Path:
        """The decisions of all reviewers together."""
        return self.path / "decisions.csv"

    @property
    def agreement(self) -> Path:
        """How far they agree."""
        return self.path / "agreement.json"

    @property
    def disagreements(self) -> Path:
        """The page of the photographs on which they don't."""
        return self.path / "disagreements.html"

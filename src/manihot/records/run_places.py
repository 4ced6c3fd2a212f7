"""Where everything in a run folder lies: no other module spells the name of a file or folder of a run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

WHOLE = -2  # in place of a fold's number: trained on everything, nothing was held out
REFITTED = "refit"  # folder beside a member's folds: its network that was trained on everything
BACKBONE = "backbone.onnx"  # of a member with the method `features`, shared by its heads
HEAD = "head.safetensors"  # a fold's linear head
NETWORK = "network.onnx"  # a fold's fine-tuned network
TORCH_NETWORK = "best.safetensors"  # the same as torch keeps it
JOB_RECORD = "job.json"  # in a fold's folder: what a job noted of it
RECORD, MANIFEST, FOLDS, QUARANTINE = "run.json", "manifest.parquet", "folds.parquet", "quarantine.csv"
SUBMISSION, SAMPLE = "submission.csv", "sample_submission.csv"
OOF, TEST = ".oof.parquet", ".test.parquet"  # how the names of a member's predictions end
ENSEMBLE = "ensemble"  # stands for a member's name where all of them answer
VIEW_PATTERN = "predictions/{{member}}.{{view}}.{part}.parquet"  # of predictions by view, which a plan may blend


def view_of(member: str, number: int) -> str:
    """The name of a member's test-time view alone, counted from 0 in the order of `tta`."""
    return f"{member}.tta{number}"


def member_of(name: str) -> str:
    """The member that a view is of; a member's name itself."""
    return name.partition(".")[0]


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
    """trust/: calibration, sets of answers, and what tells unknown photographs; the same names with --out."""

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
        """What tells unknown photographs; names its detectors' files."""
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


class RunPlaces:
    """The places in a run folder, from the first stage to the last; nothing is read or made."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def __fspath__(self) -> str:
        return str(self.path)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def record_file(self) -> Path:
        """Settings, versions and stages, run.json; `record` is its content."""
        return self.path / RECORD

    @property
    def exists(self) -> bool:
        """Whether the folder holds a run."""
        return self.record_file.is_file()

    @property
    def manifest(self) -> Path:
        """The photographs as they were scanned."""
        return self.path / MANIFEST

    @property
    def quarantine(self) -> Path:
        """The files that can't be read."""
        return self.path / QUARANTINE

    @property
    def folds(self) -> Path:
        """The manifest as it is trained on."""
        return self.path / FOLDS

    @property
    def photos(self) -> Path:
        """Photographs that came in TFRecords."""
        return self.path / "photos"

    @property
    def audit(self) -> AuditFolder:
        """What looks wrong in photographs and labels."""
        return AuditFolder(self.path / "audit")

    def store(self, height: int, width: int, fit: str) -> Path:
        """The store of photographs of one size and way of fitting."""
        return self.path / "store" / f"{height}x{width}-{fit}.npy"

    @property
    def translated_store(self) -> Path:
        """The store of the photographs that a translation learns from."""
        return self.path / "store" / "photos.npy"

    def negatives(self, name: str) -> Path:
        """The store of a source's photographs that show none of the classes."""
        return self.path / "store" / f"negatives-{name}.npy"

    def features(self, digest: str) -> Path:
        """The folder of one backbone's features of all photographs."""
        return self.path / "features" / digest

    def all_features(self) -> list[Path]:
        """Every folder of features."""
        return sorted(path for path in (self.path / "features").glob("*") if path.is_dir())

    @property
    def member_root(self) -> Path:
        """The folder of all members."""
        return self.path / "members"

    def member(self, name: str) -> MemberFolder:
        """One member's folder."""
        return MemberFolder(self.member_root / name)

    def members(self) -> list[MemberFolder]:
        """The members that have a folder, by name."""
        return [MemberFolder(path) for path in sorted(self.member_root.glob("*")) if path.is_dir()]

    def fold(self, member: str, number: int) -> FoldFolder:
        """The folder of a member's fold."""
        return self.member(member).fold(number)

    def network(self, member: str, number: int) -> Path:
        """A fold's fine-tuned network as ONNX."""
        return self.fold(member, number).network

    @property
    def prediction_root(self) -> Path:
        """The folder of all predictions."""
        return self.path / "predictions"

    def oof(self, member: str) -> Path:
        """A member's out-of-fold predictions, or the ensemble's."""
        return self.prediction_root / f"{member}{OOF}"

    def test(self, member: str) -> Path:
        """A member's predictions of the test photographs, or the ensemble's."""
        return self.prediction_root / f"{member}{TEST}"

    def predictions(self, member: str, kind: str) -> Path:
        """`oof` or `test`, as `kind` says."""
        return {"oof": self.oof, "test": self.test}[kind](member)

    def has_parts(self) -> bool:
        """Whether anything that a run leaves is there."""
        parts = (self.record_file, self.manifest, self.metrics, self.prediction_root, self.member_root)
        return any(part.exists() for part in parts)

    def predicted(self) -> list[str]:
        """Who has out-of-fold predictions, by name; without single views."""
        names = (path.name.removesuffix(OOF) for path in self.prediction_root.glob(f"*{OOF}"))
        return sorted(name for name in names if member_of(name) == name)

    def views(self, kind: str, member: str = "*") -> list[str]:
        """Views with predictions of their own (`view_of`), of a member or of all, by member and number."""
        found = (path.name.removesuffix(f".{kind}.parquet") for path in self.prediction_root.glob(f"{member}.tta*"))
        views = {name for name in found if name.rpartition(".tta")[2].isdigit()}
        return sorted(views, key=lambda name: (member_of(name), int(name.rpartition(".tta")[2])))

    @property
    def blend(self) -> BlendFolder:
        """How the members become one answer."""
        return BlendFolder(self.path / "blend")

    @property
    def trust(self) -> TrustFolder:
        """Calibration, sets of answers, unknown photographs."""
        return TrustFolder(self.path / "trust")

    def watch(self, member: str, digest: str) -> Path:
        """The reference that `manihot watch` compares with."""
        return self.path / "watch" / f"{member}-{digest}.parquet"

    @property
    def sample_submission(self) -> Path:
        """The competition's sample submission, where it lay beside the photographs."""
        return self.path / SAMPLE

    @property
    def submission(self) -> Path:
        """The test photographs' classes in the form of the competition."""
        return self.path / SUBMISSION

    @property
    def metrics(self) -> Path:
        """Scores of every member and of their blend."""
        return self.path / "metrics.json"

    @property
    def notes(self) -> Path:
        """What the user noted beside the run: scores of a leaderboard, a remark."""
        return self.path / "notes.json"

    @property
    def report(self) -> Path:
        """The report."""
        return self.path / "report.html"

    @property
    def audit_page(self) -> Path:
        """The audit as a page."""
        return self.path / "audit.html"

    @property
    def review_page(self) -> Path:
        """The page for reviewing labels."""
        return self.path / "review.html"

    @property
    def review(self) -> ReviewFolder:
        """The answers of reviewers and what came of them."""
        return ReviewFolder(self.path / "review")

    def thumbnails(self, page: str) -> Path:
        """The photographs as a page shows them, for when the files themselves are gone; page: 'report' or 'audit'."""
        return self.path / "thumbnails" / f"{page}.parquet"

    def shared_files(self) -> list[Path]:
        """What others need of the run, whatever kind of file it is: networks, predictions, blend, trust, scores."""
        tables, of_fold = ("json", "csv", "parquet", "npz", "png"), (HEAD, NETWORK, TORCH_NETWORK, "history.jsonl")
        patterns = (
            RECORD,
            MANIFEST,
            FOLDS,
            "metrics.json",
            "notes.json",
            "predictions/*.parquet",
            "watch/*.parquet",
            *(f"{folder}/*.{suffix}" for folder in ("blend", "trust") for suffix in tables),
            f"members/*/{BACKBONE}",
            *(f"members/*/*/{name}" for name in of_fold),
        )
        found = {file for pattern in patterns for file in self.path.glob(pattern)}
        twice = {file for file in found if file.name == TORCH_NETWORK and file.with_name(NETWORK) in found}
        return sorted(found - twice)  # as ONNX a network needs no torch; both would double the zip

    def is_needed_to_predict(self, file: Path) -> bool:
        """Whether no prediction is possible, or another one is made, without this file of the run."""
        networks = (BACKBONE, HEAD, NETWORK, TORCH_NETWORK)
        return file.name in networks or file in (self.record_file, self.blend.combination)

    def relative(self, path: Path) -> str:
        """A place in the run as run.json names it, '/' between parts."""
        return Path(path).relative_to(self.path).as_posix()

    def written_folders(self) -> Iterator[Path]:
        """The folders that a run writes into, without links: whatever else lies here is none of ours."""
        patterns = (
            "",
            "audit",
            "audit/thumbnails",
            "audit/thumbnails/parts",
            "audit/thumbnails/parts/*",
            "predictions",
            "blend",
            "trust",
            "watch",
            "thumbnails",
            "review",
            "store",
            "features/*",
            "members/*",
            "members/*/*",
            "members/*/*/stage*",
            "photos",
            "photos/*",
            "originals",
        )
        for pattern in patterns:
            for folder in self.path.glob(pattern) if pattern else [self.path]:
                below = folder.relative_to(self.path).parts
                steps = [self.path.joinpath(*below[: k + 1]) for k in range(len(below))]
                if folder.is_dir() and not any(step.is_symlink() for step in steps):
                    yield folder

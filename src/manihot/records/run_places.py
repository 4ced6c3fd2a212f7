"""Where everything in a run folder lies: only this module and `run_parts` spell the names of its files and folders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from manihot.records.run_parts import (
    BACKBONE,
    HEAD,
    NETWORK,
    OOF,
    SUBMISSION,
    TORCH_NETWORK,
    AuditFolder,
    BlendFolder,
    FoldFolder,
    MemberFolder,
    ReviewFolder,
    TrustFolder,
)

RECORD, MANIFEST, FOLDS, QUARANTINE = "run.json", "manifest.parquet", "folds.parquet", "quarantine.csv"
SAMPLE = "sample_submission.csv"
TEST = ".test.parquet"  # how the names of predictions of test photographs end
ENSEMBLE = "ensemble"  # stands for a member's name where all of them answer
VIEW_PATTERN = "predictions/{{member}}.{{view}}.{part}.parquet"  # of predictions by view, which a plan may blend


def view_of(member: str, number: int) -> str:
    """The name of a member's test-time view alone, counted from 0 in the order of `tta`."""
    return f"{member}.tta{number}"


def member_of(name: str) -> str:
    """The member that a view is of; a member's name itself."""
    return name.partition(".")[0]


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
        """Whether the folder contains a run."""
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

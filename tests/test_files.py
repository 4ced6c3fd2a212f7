"""Writing whole files or none: errors that libraries hide, temporary files, and whose files are never touched."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.numpy import save_file

from manihot.errors import DiskFullError, ManihotError, RunFolderError
from manihot.records.files import (
    TEMPORARY,
    atomic_path,
    describe_size,
    remove_leftovers,
    save_json,
    temporary_name,
    write_atomic,
)
from manihot.records.run_folder import RunFolder

BIG = np.random.default_rng(0).random((400, 400))  # 1.28 MB that can't be compressed


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", BIG.tobytes())


def write_torch(path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"weights": torch.from_numpy(BIG)}, path)


def write_onnx(path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    graph = onnx.helper.make_graph([], "g", [], [], [onnx.numpy_helper.from_array(BIG, "w")])
    onnx.save(onnx.helper.make_model(graph), path)


WRITERS: dict[str, Callable[[Path], object]] = {
    "a.safetensors": lambda path: save_file({"w": BIG}, path),
    "a.parquet": lambda path: pq.write_table(pa.table({"a": BIG.ravel()}), path),
    "frame.parquet": lambda path: pd.DataFrame({"a": BIG.ravel()}).to_parquet(path),
    "a.npy": lambda path: np.save(path, BIG),
    "a.npz": lambda path: np.savez_compressed(path, a=BIG),
    "a.csv": lambda path: pd.DataFrame(BIG).to_csv(path),
    "a.zip": write_zip,
    "a.json": lambda path: path.write_bytes(BIG.tobytes()),
    "a.png": lambda path: Image.fromarray((BIG * 255).astype(np.uint8)).resize((1500, 1500)).save(path),
    "last.ckpt": write_torch,
    "network.onnx": write_onnx,
}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if sys.platform == "win32" or not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("not allowed to mount a small file system here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=False)  # torch still has its file open


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_told_whatever_library_writes(small_disk: Path, name: str):
    (small_disk / name).write_bytes(b"old")
    with pytest.raises(DiskFullError, match="no space left") as caught, atomic_path(small_disk / name) as at:
        WRITERS[name](at)
    assert str(small_disk / name) in caught.value.what and "free some space" in caught.value.remedy
    assert [path.name for path in small_disk.iterdir()] == [name]
    assert (small_disk / name).read_bytes() == b"old"


@pytest.mark.skipif(sys.platform == "win32", reason="limits of Unix")
@pytest.mark.parametrize("name", WRITERS)
def test_a_limit_on_file_sizes_is_told_whatever_library_writes(tmp_path: Path, name: str):
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        with pytest.raises(RunFolderError) as caught, atomic_path(tmp_path / name) as at:
            WRITERS[name](at)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "larger than this system allows (limit on file sizes: 200 kB)" in caught.value.what
    assert "ulimit -f" in caught.value.remedy
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "words", "kind"),
    [
        (ValueError("Error while serializing: I/O error: Disk quota exceeded (os error 122)"), "quota", DiskFullError),
        (
            OSError("[Errno 122] Error writing bytes to file. Detail: [errno 122] Disk quota exceeded"),
            "quota",
            DiskFullError,
        ),
        (
            ValueError("Error while serializing: I/O error: Input/output error (os error 5)"),
            "input/output",
            RunFolderError,
        ),
        (
            RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 1 vs 0"),
            "unexpected pos",
            RunFolderError,
        ),
        (OSError("2000000 requested and 262112 written"), "262112 written", RunFolderError),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="the system's own numbers")
def test_a_system_error_that_a_library_tells_in_words(tmp_path: Path, error: Exception, words: str, kind: type):
    with pytest.raises(RunFolderError, match=words) as caught, atomic_path(tmp_path / "best.safetensors"):
        raise error
    assert type(caught.value) is kind
    assert str(tmp_path / "best.safetensors") in str(caught.value)


def test_a_mistake_of_ours_is_not_taken_for_the_disk(tmp_path: Path):
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "a.json") as at:
        at.write_text("half", encoding="utf-8")
        1 / 0  # noqa: B018
    with pytest.raises(ManihotError, match="own words"), atomic_path(tmp_path / "a.json"):
        raise ManihotError("own words")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 bytes"),
        (812, "812 bytes"),
        (8_100, "8.1 kB"),
        (999_499, "999 kB"),
        (4_140_000, "4.1 MB"),
        (50_000_000, "50 MB"),
        (61e9, "61 GB"),
        (1.5e12, "1.5 TB"),
    ],
)
def test_sizes_are_told_in_units_that_suit_them(size: float, words: str):
    assert describe_size(size) == words


# What a user may have named so; each file must outlive everything that manihot removes.
THEIRS = (
    ".holiday.party.jpg",
    ".keep.part",
    ".thesis.part1.docx",
    ".a.part",
    ".run.123.part.json",
    ".x.1.part",
    "manifest.manihot-1.part.parquet",
    ".notes.manihot.part",
    ".notes.manihot-old.part.txt",
    ".manihot-7.part",
    ".a.manihot-7.part.tar.gz.bak",
    ".a.manihot-7.partial",
    ".a.manihot-7.PART.csv",
    ".department.csv",
    ".party",
)
OURS = (".run.manihot-999999.part.json", ".last.manihot-999998.part.ckpt", ".x.manihot-999997.part")
KNOWN = (
    "",
    "audit",
    "audit/thumbnails",
    "audit/thumbnails/parts/00001",
    "predictions",
    "blend",
    "trust",
    "watch",
    "store",
    "features/ab12",
    "members/main",
    "members/main/fold0",
    "members/main/fold0/stage1",
    "photos/train",
)


def test_leftovers_go_from_where_a_run_writes_and_nothing_else_goes(tmp_path: Path):
    leftovers, kept = [], []
    for place in KNOWN:
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        leftovers += [tmp_path / place / name for name in OURS]
        kept += [tmp_path / place / name for name in THEIRS]
    for place in ("sub", "runs/other", "runs/other/members/main/fold0", "documents", "members/main/fold0/mine"):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        kept += [tmp_path / place / name for name in (*OURS, *THEIRS)]
    (tmp_path / "runs/other/run.json").write_text("{}", encoding="utf-8")
    for path in (*leftovers, *kept):
        path.write_text("content", encoding="utf-8")
    with RunFolder(tmp_path):
        assert [path for path in leftovers if path.exists()] == []
        assert [path for path in kept if not path.is_file()] == []


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_links_and_folders_under_our_temporary_names_stay(tmp_path: Path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / OURS[0]).write_text("content", encoding="utf-8")
    run = tmp_path / "run"
    run.mkdir()
    (run / OURS[0]).symlink_to(elsewhere / OURS[0])
    (run / OURS[1]).mkdir()
    (run / "predictions").symlink_to(elsewhere, target_is_directory=True)
    (run / "members").symlink_to(tmp_path, target_is_directory=True)
    with RunFolder(run):
        assert (run / OURS[0]).is_symlink() and (run / OURS[1]).is_dir() and (elsewhere / OURS[0]).is_file()


@pytest.mark.skipif(sys.platform == "win32", reason="a file that is open can't be removed there")
def test_what_a_running_process_writes_stays_until_it_is_a_day_old(tmp_path: Path):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        written = tmp_path / f".a.manihot-{other.pid}.part.csv"
        written.touch()
        remove_leftovers(tmp_path)
        assert written.exists()
        os.utime(written, (time.time() - 90_000,) * 2)
        remove_leftovers(tmp_path)
        assert not written.exists()


def test_what_a_killed_process_left_of_a_file_goes_when_it_is_written_again(tmp_path: Path):
    left, other = tmp_path / ".a.manihot-999999.part.csv", tmp_path / ".b.manihot-999999.part.csv"
    left.touch(), other.touch()
    with atomic_path(tmp_path / "a.csv") as temporary:
        temporary.write_text("x", encoding="utf-8")
    assert not left.exists() and other.exists()


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="the system doesn't say when a process was started")
def test_a_process_that_was_given_the_number_of_a_killed_one_keeps_no_file(tmp_path: Path):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        left = tmp_path / f".a.manihot-{other.pid}.part.csv"
        left.touch()
        os.utime(left, (time.time() - 100,) * 2)
        remove_leftovers(tmp_path)
        assert not left.exists()


def test_leftovers_of_one_file_alone(tmp_path: Path):
    mine, other = tmp_path / ".a.b.manihot-999999.part.zip", tmp_path / ".a.manihot-999999.part.zip"
    mine.touch(), other.touch()
    remove_leftovers(tmp_path, of=tmp_path / "a.b.zip")
    assert not mine.exists() and other.exists()
    remove_leftovers(tmp_path / "absent", of=tmp_path / "absent/a.zip")


@pytest.mark.parametrize("name", ["a.parquet", "no suffix", "a.b.tar.gz", ".hidden", "ein Blatt ü.jpg"])
def test_the_temporary_name_is_one_that_is_removed(tmp_path: Path, name: str):
    with atomic_path(tmp_path / name) as temporary:
        temporary.write_bytes(b"x")
        assert TEMPORARY.fullmatch(temporary.name) and temporary == temporary_name(tmp_path / name)
        assert temporary.suffix == (Path(name).suffix or ".part") and temporary.parent == tmp_path
        left = temporary.with_name(temporary.name.replace(str(os.getpid()), "999999"))
        left.touch()
        remove_leftovers(tmp_path, of=tmp_path / name)
        assert not left.exists() and temporary.exists()
    assert (tmp_path / name).read_bytes() == b"x"


def test_a_killed_writer_leaves_what_the_next_one_removes(tmp_path: Path):
    if sys.platform == "win32":
        pytest.skip("signals of Unix")
    code = (
        "import sys, time; from pathlib import Path; from manihot.records.files import atomic_path\n"
        "with atomic_path(Path(sys.argv[1])) as at:\n    at.write_bytes(b'x' * 10_000_000); print(1, flush=True);"
        " time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "a.zip")], stdout=subprocess.PIPE) as writer:
        assert writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
    (left,) = tmp_path.iterdir()
    assert left.stat().st_size == 10_000_000
    remove_leftovers(tmp_path, of=tmp_path / "a.zip")
    assert not left.exists()


@pytest.mark.parametrize("name", ["submission.csv", "metrics.json", "report.html"])
def test_results_that_are_not_of_a_run_are_not_written_over(tmp_path: Path, name: str):
    (tmp_path / name).write_text("mine", encoding="utf-8")
    with pytest.raises(RunFolderError, match="would be overwritten") as caught, RunFolder(tmp_path):
        pass
    assert name in caught.value.what and "--out" in caught.value.remedy
    assert (tmp_path / name).read_text(encoding="utf-8") == "mine"
    write_atomic(tmp_path / "run.json", "{}")
    with RunFolder(tmp_path):
        pass


def test_a_blend_of_the_user_stays_where_the_run_makes_its_own(tmp_path: Path):
    run = RunFolder(tmp_path)
    (run.blend.path / "recipes").mkdir(parents=True)
    theirs = [run.blend.path / "coffee.txt", run.blend.path / "recipes/mild.md"]
    ours = [run.blend.summary, run.blend.combination, run.blend.predictions("oof"), run.blend.path / "members.csv"]
    for path in (*theirs, *ours):
        path.write_text("content", encoding="utf-8")
    run.blend.clear()
    assert all(path.is_file() for path in theirs)
    assert not any(path.exists() for path in ours)


def test_errors_of_the_system_keep_their_number(tmp_path: Path):
    with pytest.raises(RunFolderError, match="not allowed to write"), atomic_path(tmp_path / "a") as at:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(at))


def test_json_is_written_whole(tmp_path: Path):
    save_json(tmp_path / "a.json", {"a": [1, "ü"]})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n "a": [\n  1,\n  "ü"\n ]\n}\n'

"""What may go wrong in the middle of a run: kill -9, Ctrl-C, SIGTERM, a full disk, a folder that can't be written.

Each run is a process of its own, started and stopped as a user would.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from manihot.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, DiskFullError, RunFolderError
from manihot.records.predictions import Predictions
from manihot.records.run_folder import RunFolder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
SLOWER = ["--set", "train.epochs=6"]


def command(photos: Path, out: Path, recipe: Path) -> list[str]:
    return [
        sys.executable,
        "-m",
        "manihot.cli",
        "run",
        str(photos),
        "--out",
        str(out),
        "--recipe",
        str(recipe),
        "--device",
        "cpu",
        "--workers",
        "1",
        *SLOWER,
    ]


def start(photos: Path, out: Path, recipe: Path) -> subprocess.Popen:
    return subprocess.Popen(command(photos, out, recipe), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def wait_for(path: Path, process: subprocess.Popen) -> None:
    """Until `path` is there, whose parts may be patterns such as *.npy; fails when the process ends before."""
    deadline = time.monotonic() + 120
    parts = path.parts
    fixed = next((k for k, part in enumerate(parts) if "*" in part), len(parts) - 1)
    folder, pattern = Path(*parts[:fixed]), "/".join(parts[fixed:])
    while not any(folder.glob(pattern)):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.002)


@pytest.fixture(scope="module")
def whole(small_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recipe and the out-of-fold predictions of a run that nothing disturbed."""
    from conftest import TINY_RECIPE

    folder = tmp_path_factory.mktemp("whole")
    (folder / "tiny.yaml").write_text(TINY_RECIPE, encoding="utf-8")
    subprocess.run(command(small_photos, folder / "out", folder / "tiny.yaml"), check=True, capture_output=True)
    return folder / "tiny.yaml", folder / "out/predictions/main.oof.parquet"


@pytest.mark.parametrize(
    "moment",
    [
        "manifest.parquet",
        "members/main/fold0/last.ckpt",
        "members/main/fold0/best.safetensors",
        *(
            pytest.param(moment, marks=pytest.mark.slow)
            for moment in (
                ".lock",
                "folds.parquet",
                "members/main/fold0/inputs.txt",
                "members/main/fold1/last.ckpt",
                "predictions/main.oof.parquet",
            )
        ),
    ],
)
def test_after_kill_9_the_same_command_ends_with_the_same_numbers(
    whole, small_photos: Path, tmp_path: Path, moment: str
):
    recipe, expected = whole
    process = start(small_photos, tmp_path / "out", recipe)
    wait_for(tmp_path / "out" / moment, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    subprocess.run(command(small_photos, tmp_path / "out", recipe), check=True, capture_output=True)
    found = Predictions.load(tmp_path / "out/predictions/main.oof.parquet")
    assert (found.logits == Predictions.load(expected).logits).all()
    assert not list((tmp_path / "out").rglob("*.part*"))


# A frozen backbone with linear heads, as the recipe `quick` has it.
FROZEN = ["--set", "method=features", "--set", "features.c=[0.01, 0.1]", "--set", "tta=[{name: full}]"]


def what_it_says(out: Path) -> dict[str, object]:
    """Everything that a run says of its photographs: predictions, calibration and sets, scores, audit tables."""
    files = [*out.glob("trust/*.json"), *out.glob("trust/*.csv"), *out.glob("audit/*.csv"), out / "metrics.json"]
    said: dict[str, object] = {
        path.relative_to(out).as_posix(): path.read_text(encoding="utf-8").replace(out.as_posix(), "OUT")
        for path in files
    }
    for path in sorted(out.glob("predictions/*.parquet")):
        found = Predictions.load(path)
        said[path.name] = [found.image_id.tolist(), found.logits.tobytes(), found.embeddings.tobytes()]
    return said


@pytest.fixture(scope="module")
def whole_frozen(whole, small_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What an undisturbed run of linear heads says."""
    out = tmp_path_factory.mktemp("frozen") / "out"
    subprocess.run([*command(small_photos, out, whole[0]), *FROZEN], check=True, capture_output=True)
    said = what_it_says(out)
    parts = {name.split("/")[0] for name in said}
    assert {"trust", "audit", "metrics.json", "main.oof.parquet"} <= parts
    return said


@pytest.mark.parametrize(
    "moment",
    [
        "features/*/*.npy",
        *(
            pytest.param(moment, marks=pytest.mark.slow)
            for moment in (
                "members/main/fold0/best.safetensors",
                "predictions/main.oof.parquet",
                "trust/calibrator.json",
                "trust/unknown.json",
                "audit/label_issues.csv",
                "audit/audit.json",
                "metrics.json",
            )
        ),
    ],
)
def test_after_kill_9_linear_heads_end_with_the_same_numbers(
    whole, whole_frozen, small_photos: Path, tmp_path: Path, moment: str
):
    """Killed while features are computed, heads fitted, and in each stage behind them."""
    again = [*command(small_photos, tmp_path / "out", whole[0]), *FROZEN]
    process = subprocess.Popen(again, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    wait_for(tmp_path / "out" / moment, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    subprocess.run(again, check=True, capture_output=True)
    found = what_it_says(tmp_path / "out")
    assert found.keys() == whole_frozen.keys()
    assert [name for name in found if found[name] != whole_frozen[name]] == []
    assert not list((tmp_path / "out").rglob("*.part*"))


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, EXIT_INTERRUPTED), (signal.SIGTERM, EXIT_TERMINATED)])
def test_a_stop_by_hand_says_what_to_do_and_has_its_own_exit_code(
    whole, small_photos: Path, tmp_path: Path, sent, code
):
    recipe, expected = whole
    process = start(small_photos, tmp_path / "out", recipe)
    wait_for(tmp_path / "out/members/main/fold0/last.ckpt", process)
    process.send_signal(sent)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert "run it again to resume" in said
    assert "Traceback" not in said
    subprocess.run(command(small_photos, tmp_path / "out", recipe), check=True, capture_output=True)
    found = Predictions.load(tmp_path / "out/predictions/main.oof.parquet")
    assert (found.logits == Predictions.load(expected).logits).all()


def test_a_full_disk_keeps_the_last_good_state(whole, small_photos: Path, tmp_path: Path):
    """On a real file system of 3 MB: the manifest is kept, the message says what to do, more space lets it go on."""
    recipe, expected = whole
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(small)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("not allowed to mount a small file system here")
    try:
        found = subprocess.run(command(small_photos, small / "out", recipe), capture_output=True, text=True)
        assert found.returncode == DiskFullError.exit_code, found.stderr
        assert "space" in found.stderr
        assert "Traceback" not in found.stderr
        assert (small / "out/manifest.parquet").is_file()
        subprocess.run(["mount", "-o", "remount,size=300m", str(small)], check=True)
        subprocess.run(command(small_photos, small / "out", recipe), check=True, capture_output=True)
        again = Predictions.load(small / "out/predictions/main.oof.parquet")
        assert (again.logits == Predictions.load(expected).logits).all()
    finally:
        subprocess.run(["umount", str(small)], check=False)


def test_a_folder_that_cannot_be_written_is_named(whole, small_photos: Path, tmp_path: Path):
    recipe, _ = whole
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    found = subprocess.run(command(small_photos, tmp_path / "file" / "out", recipe), capture_output=True, text=True)
    assert found.returncode == RunFolderError.exit_code, found.stderr
    assert "Traceback" not in found.stderr
    if os.geteuid() == 0:
        return  # root may write anywhere
    (tmp_path / "shut").mkdir(mode=0o500)
    found = subprocess.run(command(small_photos, tmp_path / "shut/out", recipe), capture_output=True, text=True)
    assert found.returncode == RunFolderError.exit_code
    assert "not allowed" in found.stderr


def test_two_processes_never_write_one_run(whole, small_photos: Path, tmp_path: Path):
    recipe, _ = whole
    with RunFolder(tmp_path / "out"):
        second = subprocess.run(command(small_photos, tmp_path / "out", recipe), capture_output=True, text=True)
    assert second.returncode == RunFolderError.exit_code
    assert "another manihot process" in second.stderr

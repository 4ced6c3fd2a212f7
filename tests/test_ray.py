"""The folds of a run by Ray on this machine: the same numbers, whoever is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import manihot
from manihot.errors import ManihotError, MissingExtraError, SettingsError
from manihot.scale import cluster

pytest.importorskip("ray", reason="the extra `ray` is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are found in /proc")]


def start(photos: Path, out: Path, recipe: Path, *more: str) -> subprocess.Popen[str]:
    words = [str(photos), "--out", str(out), "--recipe", str(recipe), "--device", "cpu", "--workers", "1", *more]
    words += ["--set", "folds.n=3", "--set", "train.epochs=12", "--set", "refit=true"]
    return subprocess.Popen(
        [sys.executable, "-m", "manihot", "run", *words],
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        start_new_session=True,
    )


def finish(one: subprocess.Popen[str]) -> str:
    told = one.communicate(timeout=570)[1]
    assert one.returncode == 0, told
    return told


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(
        "extends: standard\nphoto: {size: [32, 32]}\nfolds: {n: 3}\n"
        "model: {backbone: test_efficientnet, pretrained: false, freeze_stages: 0}\n"
        "train: {batch: 8, precision: fp32, channels_last: false}\ntta: [{name: full}]\n",
        encoding="utf-8",
    )
    return path


@pytest.fixture(scope="module")
def whole(small_photos: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run without Ray."""
    out = tmp_path_factory.mktemp("whole") / "run"
    finish(start(small_photos, out, recipe))
    return out


def same_numbers(one: Path, other: Path) -> None:
    names = [p.relative_to(one) for p in one.glob("members/main/*/*") if p.name in ("oof.parquet", "best.safetensors")]
    names += [p.relative_to(one) for p in one.glob("predictions/*.parquet")] + [Path("metrics.json")]
    assert len(names) >= 9
    assert [str(n) for n in names if (one / n).read_bytes() != (other / n).read_bytes()] == []


def workers(out: Path, job: str) -> list[int]:
    """Processes of Ray that are at a job, begun since the run."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            title = (place / "cmdline").read_bytes().decode(errors="replace")
            if title.startswith(f"ray::{job}") and place.stat().st_mtime >= out.stat().st_ctime - 3600:
                found.append(int(place.name))
        except OSError:
            continue
    return found


def wait_for(ready, what: str, one: subprocess.Popen[str]):
    end = time.monotonic() + 400
    while time.monotonic() < end and one.poll() is None:
        if found := ready():
            return found
        time.sleep(0.05)
    raise AssertionError(f"{what} never came: {one.communicate()[1] if one.poll() is not None else ''}")


def test_a_run_by_ray_has_the_same_numbers_and_tells_of_all_jobs(small_photos, recipe, tmp_path, whole):
    told = finish(start(small_photos, tmp_path / "run", recipe, "--ray", "local"))
    same_numbers(whole, tmp_path / "run")
    for name in ("main/0", "main/1", "main/2", "main/refit"):
        assert f"{name}: done in " in told
    assert "main fold 0, epoch 12/12" in told and "main fold 1, epoch 12/12" in told
    assert "(4 of 4 jobs)" in told
    again = finish(start(small_photos, tmp_path / "run", recipe, "--ray", "local"))
    assert again.count(": done before") == 4


def test_a_killed_worker_costs_its_own_job_alone(small_photos, recipe, tmp_path, whole):
    out = tmp_path / "run"
    one = start(small_photos, out, recipe, "--ray", "local")
    wait_for((out / "members/main/fold0/history.jsonl").exists, "an epoch", one)
    [worker] = wait_for(lambda: workers(out, "main/0"), "the worker", one)
    os.kill(worker, signal.SIGKILL)
    told = finish(one)
    assert "main fold 0: continues after epoch" in told
    assert "main fold 1: continues" not in told
    same_numbers(whole, out)


def test_after_the_driver_was_killed_the_same_command_resumes(small_photos, recipe, tmp_path, whole):
    out = tmp_path / "run"
    one = start(small_photos, out, recipe, "--ray", "local")
    wait_for((out / "members/main/fold0/history.jsonl").exists, "an epoch", one)
    one.kill()
    one.communicate()
    told = finish(start(small_photos, out, recipe, "--ray", "local"))
    assert "continues after epoch" in told or "done before" in told
    same_numbers(whole, out)


def test_a_job_that_fails_ends_the_run_with_its_own_error(small_photos, recipe, tmp_path):
    out, compute = tmp_path / "run", manihot.Compute(device="cpu", workers=1)
    manihot.prepare(small_photos, out=out, recipe=recipe, compute=compute)
    (out / "store").write_text("", encoding="utf-8")  # no folder can be made there
    with pytest.raises(ManihotError, match=r"store is a file, and a folder is needed there"):
        manihot.run(small_photos, out=out, recipe=recipe, compute=compute, ray="local")


def test_no_cluster_no_ray_and_smoke_are_refused(small_photos, recipe, tmp_path, monkeypatch):
    with pytest.raises(SettingsError, match=r"--ray 127\.0\.0\.1:1: no Ray answers"):
        manihot.run(small_photos, out=tmp_path / "a", recipe=recipe, ray="127.0.0.1:1")
    with pytest.raises(SettingsError, match="--smoke tries a recipe in one process"):
        manihot.run(small_photos, out=tmp_path / "b", recipe=recipe, ray="local", smoke=True)
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="--ray needs the extra 'ray'"):
        manihot.run(small_photos, out=tmp_path / "c", recipe=recipe, ray="local")

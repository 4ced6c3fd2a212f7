"""Jobs: the folds of a run one by one, by other processes, with the numbers of the run itself."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

import manihot
from manihot.errors import RunFolderError, SettingsError
from manihot.pipeline import jobs
from manihot.records.files import is_held, one_at_a_time, remove_leftovers
from manihot.records.predictions import Predictions
from manihot.records.run_folder import JobFolder, RunFolder

SETS = ["folds.n=3", "photo.area=4096", "features.c=[0.01]", "refit=true"]


def begun(photos: Path, out: Path, **more) -> dict:
    """Arguments of a run of the recipe `quick`, and of `prepare`."""
    compute = manihot.Compute(device="cpu", workers=1)
    return {"photos": photos, "out": out, "recipe": "quick", "set": SETS, "compute": compute, **more}


@pytest.fixture(scope="module")
def whole(small_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that computed all its folds itself."""
    out = tmp_path_factory.mktemp("whole") / "run"
    manihot.run(**begun(small_photos, out))
    return out


def same_numbers(one: Path, other: Path) -> None:
    """Both runs' predictions and heads are equal, bit by bit."""
    names = [p.relative_to(one) for p in one.glob("members/main/*/*") if p.suffix in (".parquet", ".safetensors")]
    names += [p.relative_to(one) for p in one.glob("predictions/*.parquet")]
    assert len(names) >= 8
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    scores = [json.loads((run / "metrics.json").read_text(encoding="utf-8")) for run in (one, other)]
    assert scores[0] == scores[1]


def test_jobs_one_by_one_give_what_the_run_gives(small_photos: Path, tmp_path: Path, whole: Path):
    out = tmp_path / "run"
    found = manihot.prepare(**begun(small_photos, out))
    assert found.jobs == {f"main/{name}": "waiting" for name in ("0", "1", "2", "refit")}
    for name in ("main/2", "main/0", "main/1", "main/refit"):
        found = manihot.train(out, job=name, compute=manihot.Compute(device="cpu", workers=1))
        assert found.jobs == {name: "done"}
    made = {p: p.stat().st_mtime_ns for p in out.glob("members/main/*/head.safetensors")}
    assert "stages" in RunFolder(out).record and "members/main/fold0" not in RunFolder(out).record["stages"]
    manihot.run(**begun(small_photos, out))
    assert made == {p: p.stat().st_mtime_ns for p in made} and len(made) == 4, "no fold was trained again"
    assert RunFolder(out).record["stages"]["members/main/fold0"]["seconds"] > 0
    same_numbers(whole, out)


def test_a_job_that_is_done_is_left_alone(whole: Path):
    head = whole / "members/main/fold1/head.safetensors"
    before = head.stat().st_mtime_ns
    assert not jobs.train_job(whole, "main/1", manihot.Compute(device="cpu"))
    assert head.stat().st_mtime_ns == before
    assert set(manihot.train(whole).jobs.values()) == {"done"}


def test_a_job_started_twice_is_computed_once(small_photos: Path, tmp_path: Path, whole: Path):
    out = tmp_path / "run"
    manihot.prepare(**begun(small_photos, out))
    words = ["train", str(out), "--job", "main/0", "--device", "cpu", "--workers", "1"]
    start = [sys.executable, "-m", "manihot", *words]
    two = [subprocess.Popen(start, stderr=subprocess.PIPE, text=True, encoding="utf-8") for _ in range(2)]
    told = [one.communicate(timeout=300)[1] for one in two]
    assert [one.returncode for one in two] == [0, 0], told
    assert sum("fitting the head" in words for words in told) == 1
    oof = "members/main/fold0/oof.parquet"
    assert (out / oof).read_bytes() == (whole / oof).read_bytes()


def test_the_run_waits_for_a_job_of_another_process(small_photos: Path, tmp_path: Path, whole: Path):
    out = tmp_path / "run"
    manihot.prepare(**begun(small_photos, out))
    code = (
        "import sys, time; from pathlib import Path; from manihot.records.files import one_at_a_time\n"
        "with one_at_a_time(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(4)\n"
    )
    place = out / "members/main/fold0"
    with subprocess.Popen([sys.executable, "-c", code, str(place)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        assert is_held(place) and manihot.train(out).jobs["main/0"] == "running"
        clock = time.monotonic()
        manihot.run(**begun(small_photos, out))
        assert time.monotonic() - clock > 2
    same_numbers(whole, out)


def test_what_cannot_be_a_job_is_refused(small_photos: Path, tmp_path: Path, whole: Path, monkeypatch):
    with pytest.raises(RunFolderError, match="contains no run"):
        manihot.train(tmp_path / "nothing")
    with pytest.raises(SettingsError, match="there is no job 'main/7'"):
        manihot.train(whole, job="main/7")
    manihot.prepare(**begun(small_photos, tmp_path / "run"))
    with pytest.raises(RunFolderError, match="main/refit waits for main/0, main/1, main/2"):
        manihot.train(tmp_path / "run", job="main/refit")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SettingsError, match="fitted by one process"):
        manihot.train(tmp_path / "run", job="main/0")
    with pytest.raises(RunFolderError, match="is written by `manihot run`"):
        JobFolder(tmp_path / "run").update_record(seed=1)


def test_a_job_under_other_settings_is_computed_anew(small_photos: Path, tmp_path: Path):
    out = tmp_path / "run"
    manihot.prepare(**begun(small_photos, out))
    manihot.train(out, job="main/0", compute=manihot.Compute(device="cpu"))
    first = Predictions.load(out / "members/main/fold0/oof.parquet")
    changed = [one.replace("0.01", "1.0") for one in SETS]
    manihot.run(**begun(small_photos, out, set=changed, update=True))
    assert not (first.logits == Predictions.load(out / "members/main/fold0/oof.parquet").logits).all()


def test_leftovers_are_kept_while_the_lock_beside_them_is_held(tmp_path: Path):
    folder = tmp_path / "fold0"
    folder.mkdir()
    part = folder / ".oof.manihot-999999.part.parquet"  # of a process that this machine doesn't have
    part.write_bytes(b"")
    with one_at_a_time(folder):
        remove_leftovers(folder)
        assert part.exists()
    with one_at_a_time(folder / "oof.parquet"):
        remove_leftovers(folder)
        assert part.exists()
    remove_leftovers(folder)
    assert not part.exists()


def test_two_processes_compute_each_chunk_of_features_once(tmp_path: Path):
    code = (
        "import sys; import numpy as np; from pathlib import Path; from manihot.quick import heads\n"
        "from manihot.photos.preprocess import Preprocess; from manihot.settings import View\n"
        "heads.CHUNK = 8; seen = []\n"
        "class Runner:\n"
        "    def __call__(self, photos):\n"
        "        seen.extend(photos[:, 0, 0, 0]); return {'embeddings': photos.reshape(len(photos), -1).astype('f4')}\n"
        "photos = [np.full((8, 8, 3), k, np.uint8) for k in range(96)]\n"
        "size = Preprocess((8, 8), 'squash', (0, 0, 0), (1, 1, 1))\n"
        "found = heads.make_features(Path(sys.argv[1]), Runner(), photos, size, [View()], 4)\n"
        "assert (found[:, 0, 0] == np.arange(96)).all(); print(*seen)\n"
    )
    start = [sys.executable, "-c", code, str(tmp_path / "features")]
    two = [subprocess.Popen(start, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    seen = [int(n) for one in two for n in one.communicate(timeout=120)[0].split()]
    assert [one.returncode for one in two] == [0, 0]
    assert sorted(seen) == list(range(96))
    assert not list((tmp_path / "features").glob(".*")), "no lock is left"

"""Several processes: gradients averaged, the same weights on each, resumed, refused where they can't."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from manihot.augment.augmenter import Augmenter
from manihot.errors import DataError, ManihotError, RunFolderError, SettingsError
from manihot.settings import Recipe
from manihot.train import distributed
from manihot.train.data.dataset import EpochBatches, TrainingPhotos, make_loader
from manihot.train.data.unlabelled import UnlabelledPhotos
from manihot.train.gradients import Training
from manihot.train.loop import fit
from manihot.train.margins import Margins
from manihot.train.networks.backbones import make_model, make_preprocess
from manihot.train.optim.losses import LOSSES, make_loss
from manihot.train.runners import Normalise
from manihot.train.steps import NEEDS_UNLABELLED, STEPS, TWO_NETWORKS, StepState, make_step, unlabelled_settings
from manihot.train.training import make_mixer

SIZE = (32, 32)
N = 24  # photographs: batches of 12, so slices of 6
PHOTOS = np.random.default_rng(0).integers(0, 256, (N, 40, 40, 3), dtype=np.uint8)
LABELS = np.arange(N) % 3
SOFT = np.random.default_rng(3).dirichlet((1, 1, 1), N)
PLAIN: dict[str, Any] = {
    "model": {"backbone": "test_convnext", "pretrained": False, "dropout": 0.0},  # layer norms
    "augment": [{"name": "horizontal_flip"}],
    "optimizer": {"name": "sgd", "lr": 0.05, "weight_decay": 0.01},
    "train": {"epochs": 2, "batch": 6, "clip": 0.0, "precision": "fp32"},
}


def two_looks(model, batch, state):
    """As semi-supervised steps: the network is called twice, once without a gradient."""
    images = state.normalise(batch["image"], batch["colour"])
    with torch.no_grad():
        guess = model(images.flip(3)).softmax(1)
    logits = model(images)
    sure = (guess.max(1).values > 0.34).float()
    agree = -(guess * logits.log_softmax(1)).sum(1) * sure
    return {"loss": state.loss(logits, batch["target"], sample_weights=batch["weight"]) + agree.mean()}


def now_and_then(model, batch, state):
    """The head's bias has a gradient only in the slice with photograph 0, and none at all in the first epoch."""
    images = state.normalise(batch["image"], batch["colour"])
    bias = model.head.bias if state.epoch and bool((batch["index"] == 0).any()) else model.head.bias.detach()
    logits = torch.nn.functional.linear(model.embed(images), model.head.weight, bias)
    return {"loss": state.loss(logits, batch["target"], sample_weights=batch["weight"])}


@dataclass(frozen=True)
class Case:
    """What is trained by one process with batches of 12, and by two with batches of 6."""

    changes: dict[str, Any] = field(default_factory=dict)
    step: Callable[..., Any] | None = None  # instead of the recipe's
    draw: Callable[[int], np.ndarray] | None = None
    teacher: np.ndarray | None = None
    targets: np.ndarray = field(default_factory=lambda: np.eye(3)[LABELS])


def oversampled(epoch: int) -> np.ndarray:
    return np.random.default_rng([7, epoch]).integers(0, N, 36)


EFFICIENT = {"backbone": "test_efficientnet", "pretrained": False, "dropout": 0.0, "freeze_norm": True}
SAME = {  # slices of one size, means over photographs: what several processes compute is what one does
    "plain labels": Case(),
    "soft labels": Case({"loss": {"name": "cross_entropy", "smoothing": 0.1}}, targets=SOFT),
    "frozen batch norms, oversampling": Case({"model": EFFICIENT}, draw=oversampled),
    "adamw, ema": Case({"optimizer": {"name": "adamw", "lr": 1e-3}, "averaging": {"name": "ema", "decay": 0.8}}),
    "sam, accumulation, clipping": Case(
        {"optimizer": {"sam": 0.05}, "train": {"batch": 3, "accumulate": 2, "clip": 0.5}}
    ),
    "swa, lookahead, frozen stages": Case(
        {"averaging": {"name": "swa"}, "optimizer": {"lookahead": 2}, "model": {"freeze_stages": 2}}
    ),
    "fixmatch": Case({"step": {"name": "fixmatch", "threshold": 0.2, "mu": 2}}),
    "gjs": Case({"loss": {"name": "gjs", "views": 2}}),
    "distillation": Case({"loss": {"name": "distillation"}}, teacher=np.random.default_rng(5).normal(size=(N, 3))),
    "two looks": Case(step=two_looks),
}
OTHER = {  # each process looks at its own slice alone
    "class weights": Case({"loss": {"name": "class_balanced", "counts": [2, 20, 200], "beta": 0.99}}),
    "triplet": Case({"loss": {"name": "triplet"}}),
    "mixup, cutmix": Case({"mixing": [{"name": "mixup"}, {"name": "cutmix"}]}),
    "snapmix": Case({"model": EFFICIENT, "mixing": [{"name": "snapmix"}]}),
    "idle parameters": Case({"optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.1}}, now_and_then),
    "batch norms": Case({"model": {**EFFICIENT, "freeze_norm": False}, "averaging": {"name": "ema", "decay": 0.5}}),
}
REFUSED = {name: Case({"loss": {"name": name}}) for name in ("elr", "sop", "isda")}


def recipe_of(case: Case) -> Recipe:
    values = {**PLAIN, **{k: v for k, v in case.changes.items() if k not in PLAIN}}
    for name in PLAIN:
        if name in case.changes:
            values[name] = {**PLAIN[name], **case.changes[name]}
    if distributed.world() == 1:
        values["train"] = {**values["train"], "batch": 2 * values["train"]["batch"]}
    return Recipe.model_validate_json(json.dumps(values))


def training(case: Case, folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, np.ndarray]:
    """Losses by epoch, and the weights kept, of this process."""
    recipe = recipe_of(case)
    preprocess = make_preprocess(recipe.model, SIZE, "squash")
    model = make_model(recipe.model, 3, SIZE, seed=0)
    augmenter, unlabelled = Augmenter(recipe.augment, SIZE, 0, recipe.train.epochs), None
    if recipe.step.name in NEEDS_UNLABELLED:
        settings = unlabelled_settings(recipe.step)
        unlabelled = UnlabelledPhotos(PHOTOS, np.arange(15, N), SIZE, 0, recipe.train.epochs, **settings)
    loss = make_loss(recipe.loss.name, recipe.loss.settings, classes=3, photographs=N)
    views = max(getattr(term, "views", 1) for term in loss.modules())
    teacher = None if case.teacher is None else case.teacher.astype(np.float32)
    data = TrainingPhotos(PHOTOS, np.arange(N), case.targets, np.ones(N), augmenter, teacher, unlabelled, views)
    share = (distributed.rank(), distributed.world())
    loader, batches = make_loader(data, recipe.train.batch, 0, 0, False, case.draw, share)
    mixer = make_mixer(recipe, len(batches), 0, model)
    state = StepState(torch.device("cpu"), Normalise(preprocess), loss, dtype, mixer)
    state.margins = Margins(np.arange(N).astype(str), LABELS, 3, torch.device("cpu"))
    found: dict[str, np.ndarray] = {}
    folder.mkdir(parents=True, exist_ok=True)

    def save(network):
        (folder / "kept").write_text(str(os.getpid()), encoding="utf-8")

    def judge(network):
        network.eval()

        def logits_of(rows):
            with torch.no_grad():
                images = torch.from_numpy(PHOTOS[rows][:, 4:36, 4:36].copy())
                return network(state.normalise(images)).float().numpy()

        logits = torch.from_numpy(distributed.by_parts(np.arange(N), logits_of))
        found.update({name: value.clone().numpy() for name, value in network.state_dict().items()})
        return {"loss": float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(LABELS))), "accuracy": 0.5}

    step = case.step or make_step(recipe.step)
    progress = fit(Training(model, loader, batches, step, state), recipe, 0, folder, judge, save, "test")
    found.update({f"memory.{name}": value.numpy() for name, value in loss.state_dict().items()})
    for name in ("train_loss", "val_loss"):
        found[name] = np.array([row[name] for row in progress.history])
    found["margins"] = torch.stack([progress.margins[epoch] for epoch in range(progress.epoch)]).nan_to_num().numpy()
    return found


# What the two processes do; each writes what it found into `folder`


def two_processes(number: int, port: int, folder: Path) -> None:
    os.environ |= {
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    began = time.monotonic()
    try:
        with distributed.processes("cpu") as device:
            assert device.type == "cpu"
            for name, case in {**SAME, **OTHER}.items():
                np.savez(folder / f"{name}.{number}.npz", **training(case, folder / name))
            for look in (exchange, refusals, infinite_gradient, stop_and_resume):
                look(folder)
            began = time.monotonic()
            fail_in_the_second(folder)
    except ManihotError as error:
        error_file = folder / f"error.{number}.json"
        error_file.write_text(json.dumps([type(error).__name__, str(error), time.monotonic() - began]))


def note(folder: Path, name: str, **values: Any) -> None:
    (folder / f"{name}.{distributed.rank()}.json").write_text(json.dumps(values), encoding="utf-8")


def exchange(folder: Path) -> None:
    parts = [distributed.by_parts(np.arange(n), lambda rows: rows[:, None] * 2.0).tolist() for n in (1, 5)]
    said = distributed.from_first(lambda: {"by": distributed.rank(), "world": distributed.world()})
    large = distributed.from_first(lambda: bytes(20_000_000))
    note(folder, "exchange", parts=parts, said=said, large=len(large), all=distributed.gather(distributed.rank()))


def refusals(folder: Path) -> None:
    found = {}
    for name, case in REFUSED.items():
        with pytest.raises(SettingsError) as error:
            training(case, folder / name)
        found[name] = str(error.value)
    note(folder, "refused", **found)


def infinite_gradient(folder: Path) -> None:
    """Half precision; in the second step one process alone has an infinite slope."""

    def spiked(model, batch, state):
        out = STEPS["supervised"](model, batch, state)
        if state.epoch == 0 and state.batch_number == 1 and distributed.rank() == 1:
            out["loss"] = out["loss"] + (model.head.weight * 0).sum().abs().sqrt()
        return out

    found = training(Case(step=spiked), folder / "fp16", torch.float16)
    np.savez(folder / f"fp16.{distributed.rank()}.npz", **found)


def stop_and_resume(folder: Path) -> None:
    case = Case({"model": {"dropout": 0.3}, "train": {"epochs": 3}, "averaging": {"name": "ema", "decay": 0.8}})
    whole = training(case, folder / "whole")
    calls = 0

    def stops(model, batch, state):
        nonlocal calls
        calls += 1
        if calls == 4:  # within the second epoch
            raise KeyboardInterrupt
        return STEPS["supervised"](model, batch, state)

    try:
        training(Case(case.changes, stops), folder / "stopped")
        raise AssertionError("it didn't stop")
    except KeyboardInterrupt:
        pass
    resumed = training(case, folder / "stopped")
    note(folder, "resume", same=[bool((whole[k] == resumed[k]).all()) for k in whole], seen=torch.rand(1).item())


def fail_in_the_second(folder: Path) -> None:
    def breaks(model, batch, state):
        if state.epoch == 1 and distributed.rank() == 1:
            raise DataError("photograph 7 is broken", "look at it")
        return STEPS["supervised"](model, batch, state)

    training(Case(step=breaks), folder / "broken")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what two processes found."""
    folder = tmp_path_factory.mktemp("pair")
    torch.multiprocessing.spawn(two_processes, (free_port(), folder), nprocs=2)
    return folder


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def both(folder: Path, name: str) -> list[Any]:
    """What each of the two noted."""
    if (folder / f"{name}.0.json").exists():
        return [json.loads((folder / f"{name}.{k}.json").read_text(encoding="utf-8")) for k in (0, 1)]
    return [dict(np.load(folder / f"{name}.{k}.npz")) for k in (0, 1)]


@pytest.mark.parametrize("name", SAME)
def test_two_processes_train_as_one_with_the_doubled_batch(pair: Path, tmp_path: Path, name: str):
    first, second = both(pair, name)
    alone = training(SAME[name], tmp_path)
    assert set(alone) == set(first) == set(second)
    start = make_model(recipe_of(SAME[name]).model, 3, SIZE, seed=0).state_dict()
    assert not np.allclose(alone["head.weight"], start["head.weight"], atol=1e-4)  # something was learned
    for key, value in alone.items():
        assert np.array_equal(first[key], second[key]), key
        near = 1e-4 if key == "margins" else 5e-6  # they are differences of logits, which sum over many weights
        np.testing.assert_allclose(first[key], value, rtol=1e-5, atol=near, err_msg=key)
    case = SAME[name]
    seen_all = case.step is None and case.draw is None
    assert not seen_all or (np.abs(alone["margins"]).max(0) > 0).all(), "every photograph is noted"
    np.testing.assert_allclose(first["train_loss"], alone["train_loss"], rtol=2e-6)


@pytest.mark.parametrize("name", OTHER)
def test_both_processes_hold_the_same_weights_where_each_sees_its_slice_alone(pair: Path, name: str):
    first, second = both(pair, name)
    assert all(np.array_equal(first[key], second[key]) for key in first)
    start = make_model(recipe_of(OTHER[name]).model, 3, SIZE, seed=0).state_dict()
    assert not np.allclose(first["head.weight"], start["head.weight"], atol=1e-4)
    assert np.isfinite(first["train_loss"]).all()


def test_every_step_has_its_case():
    assert {recipe_of(case).step.name for case in SAME.values() if case.step is None} == {*STEPS} - {*TWO_NETWORKS}


def test_every_loss_that_remembers_photographs_is_refused(pair: Path):
    settings = {"gjs": {"views": 2}}
    built = {name: row.build(settings.get(name, {}), 3, N) for name, row in LOSSES.items() if not row.made_of_losses}
    assert {name for name, loss in built.items() if loss.state_dict()} == set(REFUSED)
    for told in both(pair, "refused"):
        assert all("remembers photographs" in words and "in one process" in words for words in told.values())
        assert set(told) == set(REFUSED)


def test_what_processes_exchange(pair: Path):
    first, second = both(pair, "exchange")
    assert first == second
    assert first["parts"] == [[[0.0]], [[0.0], [2.0], [4.0], [6.0], [8.0]]]
    assert first["said"] == {"by": 0, "world": 2} and first["all"] == [0, 1] and first["large"] == 20_000_000


def test_each_process_mixes_in_its_own_way(monkeypatch: pytest.MonkeyPatch):
    recipe = recipe_of(OTHER["mixup, cutmix"])
    own, other = make_mixer(recipe, 8, 0, None), None
    monkeypatch.setattr("manihot.train.training.rank", lambda: 1)
    other = make_mixer(recipe, 8, 0, None)
    images, targets = torch.rand(6, 3, 8, 8), torch.eye(3)[torch.arange(6) % 3]
    mixed = [mixer(images, targets, 0, 0, in_place=False).images for mixer in (own, own, other)]
    assert torch.equal(mixed[0], mixed[1]) and not torch.equal(mixed[0], mixed[2])


def test_an_infinite_gradient_of_one_is_skipped_by_both(pair: Path):
    first, second = both(pair, "fp16")
    assert all(np.array_equal(first[key], second[key]) and np.isfinite(first[key]).all() for key in first)
    state = torch.load(pair / "fp16/last.ckpt", weights_only=True)
    assert state["scaler"]["scale"] == 32768  # halved once
    assert state["progress"]["processes"] == 2


def test_a_stopped_pair_continues_bit_for_bit_and_draws_its_own_dropout(pair: Path):
    first, second = both(pair, "resume")
    assert all(first["same"]) and all(second["same"]) and len(first["same"]) > 20
    assert first["seen"] != second["seen"]
    assert (pair / "whole/kept").is_file()


def test_another_number_of_processes_does_not_continue(pair: Path, tmp_path: Path):
    (tmp_path / "last.ckpt").write_bytes((pair / "plain labels/last.ckpt").read_bytes())
    with pytest.raises(RunFolderError, match="began with 2 processes, and now there are 1"):
        training(SAME["plain labels"], tmp_path)


def test_an_error_of_one_ends_both_within_seconds(pair: Path):
    (_, words, seconds), (own_kind, own, _) = both(pair, "error")
    assert own_kind == "DataError" and "photograph 7 is broken" in own and "look at it" in own
    assert "another process of this training is gone" in words and "run again to resume" in words
    assert seconds < 20


def test_slices_join_to_the_batches_of_one_process():
    whole = list(EpochBatches(33, 12, seed=1))
    slices = [list(EpochBatches(33, 4, seed=1, share=(k, 3))) for k in range(3)]
    assert [[*one, *two, *three] for one, two, three in zip(*slices)] == whole
    assert {len(part) for parts in slices for part in parts} <= {3, 4}
    tiny = [EpochBatches(5, 1, seed=0, share=(k, 2)) for k in (0, 1)]
    assert all(len(part) >= 1 for batches in tiny for part in batches)
    assert len(tiny[0]) == len(tiny[1]) == 2
    with pytest.raises(DataError, match="3 photographs to train on can't be shared by 4"):
        EpochBatches(3, 8, seed=0, share=(0, 4))


def test_processes_without_a_meeting_point_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with pytest.raises(SettingsError, match="MASTER_ADDR"), distributed.processes("cpu"):
        pass
    with pytest.raises(SettingsError, match="can't train on mps"), distributed.processes("mps"):
        pass
    assert distributed.world() == 1


# From the command line


def start(number: int, port: int, *arguments: str) -> subprocess.Popen[str]:
    """One of two processes, as any launcher may start them."""
    own = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environment = {**os.environ, **{key: str(value) for key, value in own.items()}}
    command = [sys.executable, "-m", "manihot", *arguments]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, encoding="utf-8")


def wait_for(path: Path, of: Sequence[subprocess.Popen[str]]) -> None:
    end = time.monotonic() + 300
    while not path.exists() and time.monotonic() < end and all(one.poll() is None for one in of):
        time.sleep(0.02)
    assert path.exists(), [one.communicate()[1] for one in of]


def prepared(photos: Path, out: Path, recipe: Path, epochs: int = 8) -> list[str]:
    """A run folder whose job main/0 is left; the arguments of `prepare` and `run`."""
    told = [str(photos), "--out", str(out), "--recipe", str(recipe), "--device", "cpu", "--workers", "1"]
    told += ["--set", f"train.epochs={epochs}", "--set", "folds.only=[0]"]
    subprocess.run([sys.executable, "-m", "manihot", "prepare", *told], check=True, timeout=300)
    return told


def job(out: Path) -> list[str]:
    return ["train", str(out), "--job", "main/0", "--device", "cpu"]


@pytest.mark.slow
def test_a_pair_killed_in_the_middle_continues_with_the_same_numbers(small_photos: Path, tiny_recipe: Path, tmp_path):
    for out in ("whole", "killed"):
        prepared(small_photos, tmp_path / out, tiny_recipe)
    for number, out in enumerate(("whole", "killed", "killed")):
        port = free_port()
        two = [start(k, port, *job(tmp_path / out)) for k in (0, 1)]
        if number == 1:
            wait_for(tmp_path / "killed/members/main/fold0/history.jsonl", two)
            for one in two:
                one.kill()
        told = [one.communicate(timeout=300)[1] for one in two]
        if number != 1:
            assert [one.returncode for one in two] == [0, 0], told
        if number == 2:
            assert "continues after epoch" in told[0]
        assert "epoch" not in told[1]  # the first one speaks
    files = ["members/main/fold0/oof.parquet", "members/main/fold0/best.safetensors"]
    assert all((tmp_path / "whole" / f).read_bytes() == (tmp_path / "killed" / f).read_bytes() for f in files)


@pytest.mark.slow
def test_one_killed_process_ends_the_other_within_seconds(small_photos: Path, tiny_recipe: Path, tmp_path: Path):
    prepared(small_photos, tmp_path / "run", tiny_recipe, epochs=500)
    port = free_port()
    two = [start(k, port, *job(tmp_path / "run")) for k in (0, 1)]
    wait_for(tmp_path / "run/members/main/fold0/history.jsonl", two)
    two[1].kill()
    clock = time.monotonic()
    told = two[0].communicate(timeout=120)[1]
    assert time.monotonic() - clock < 60
    assert two[0].returncode == 1
    assert "another process of this training is gone" in told
    assert "run again to resume" in told and "Traceback" not in told
    two[1].communicate()


@pytest.mark.slow
def test_torchrun_trains_a_job_and_run_goes_on(small_photos: Path, tiny_recipe: Path, tmp_path: Path):
    def call(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, timeout=500)

    arguments = prepared(small_photos, tmp_path / "run", tiny_recipe)
    torchrun = ["torch.distributed.run", "--nproc-per-node", "2", "-m", "manihot"]
    done = call(*torchrun, *job(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert "main/0 done" in done.stdout
    trained = tmp_path / "run/members/main/fold0/best.safetensors"
    before = trained.stat().st_mtime_ns
    alone = call("manihot", "run", *arguments)
    assert alone.returncode == 0, alone.stderr
    assert trained.stat().st_mtime_ns == before and "epoch 1/" not in alone.stderr
    assert (tmp_path / "run/report.html").is_file() and (tmp_path / "run/metrics.json").is_file()
    refused = call(*torchrun, "run", *arguments)
    assert refused.returncode != 0
    assert "several processes can train one job, but not a whole run" in refused.stderr

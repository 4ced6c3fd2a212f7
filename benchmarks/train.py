"""Input pipelines, mixes and the training loop: what each costs, in CPU time of one thread.

    python benchmarks/train.py            (the notebook style needs albumentations, of the extra `oracles`)
    python benchmarks/train.py --table    only the table of what was measured
    python benchmarks/train.py --only input --photographs 16 --sizes 32 --rounds 1 --results /tmp/tried.json

Photographs of 800 x 600 pixels, drawn, saved as JPEG of about 125 KB, come out as batches of 224 or 384 pixels:
random resized crop, flips, colour jitter. timm: its own create_loader. Notebook style: opencv and
albumentations. torchvision: v2 on decode_jpeg. Each in a DataLoader without worker processes, in turns, the
best of several rounds. Those three decode every photograph whole; manihot reads files as `photo.store: none` does, at
a fraction of the scale where that is enough, or its uint8 store. manihot leaves colours and normalisation to the
training device, as timm's prefetcher leaves normalisation: its batches as they leave the loader, uint8, are what
manihot's are compared with; "normalised" rows, with all of it on this thread, are compared with create_loader without
prefetcher, which normalises. The loop: the network of `standard` at 224, batch
16, against a bare loop over the same loader. CPU time is not disturbed by other work as wall time is; caches are:
compare ratios.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.update(NO_ALBUMENTATIONS_UPDATE="1", OMP_NUM_THREADS="1")

import cv2
import numpy as np
import timm
import torch
from torch.utils.data import DataLoader, Dataset

from bracol import commit, machine
from manihot.augment.augmenter import Augmenter, as_input
from manihot.demo.backgrounds import draw_background
from manihot.infer.forward import PhotoFiles, UnresizedFiles
from manihot.photos.preprocess import Preprocess
from manihot.records.files import save_json
from manihot.settings import Choice, Recipe, load_recipe
from manihot.train.data.dataset import TrainingPhotos, make_loader
from manihot.train.data.mixing import MIXES
from manihot.train.gradients import Training
from manihot.train.loop import fit
from manihot.train.networks.backbones import make_model, make_preprocess, set_training
from manihot.train.optim.losses import make_loss
from manihot.train.optim.optimizers import make_optimizer
from manihot.train.runners import Normalise
from manihot.train.steps import STEPS, StepState
from manihot.train.training import make_mixer

RESULTS = Path(__file__).resolve().parent / "results" / "train.json"
PHOTOGRAPHS, BATCH, CLASSES = 48, 16, 5
STEPS_AN_EPOCH = 12  # the checkpoint at its end is a part of `fit`; a real epoch has more
MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
AUGMENT = (
    Choice(name="random_resized_crop", scale=[0.5, 1.0]),
    Choice(name="horizontal_flip", p=0.5),
    Choice(name="vertical_flip", p=0.5),
    Choice(name="color_jitter", p=1.0, brightness=0.2, contrast=0.2, saturation=0.2, hue=0.0),
)
TIMM = {"uint8": "timm create_loader, uint8", "normalised": "timm create_loader"}  # what each kind is compared with
UINT8 = ("manihot, decoding", "manihot, uint8 store", TIMM["uint8"])  # the rows of this kind; the others normalise
Pass = Callable[[], Iterable[Any]]  # one pass over all photographs, batch by batch


def draw_photographs(folder: Path, count: int) -> list[Path]:
    """JPEG files of 800 x 600 pixels and about 125 KB."""
    rng, paths = np.random.default_rng(0), []
    for number in range(count):
        scene, _ = draw_background(rng, (600, 800), "leaf")
        scene = scene * (255 if scene.max() <= 2 else 1) + rng.normal(0, 6, scene.shape)  # a sensor's noise
        pixels = np.clip(scene, 0, 255).astype(np.uint8)[:, :, ::-1]
        paths.append(folder / "one" / f"{number}.jpg")
        paths[-1].parent.mkdir(exist_ok=True)
        for quality in range(95, 40, -3):
            data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
            if len(data) < 130_000:
                break
        paths[-1].write_bytes(data.tobytes())
    return paths


class Files(Dataset):
    """Photographs read and transformed one by one."""

    def __init__(self, paths: list[Path], read: Callable[[Path], torch.Tensor]) -> None:
        self.paths, self.read = paths, read

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        return self.read(self.paths[row]), row % CLASSES


def manihot_passes(paths: list[Path], size: int) -> dict[str, Pass]:
    """From files, from files with normalisation, from the store."""
    edge = round(size * 1.15)
    preprocess = Preprocess((size, size), "squash", MEAN, STD, (edge, edge))
    stored = PhotoFiles(paths, preprocess)
    files, store = UnresizedFiles(stored), np.stack([stored[row] for row in range(len(paths))])
    targets = np.eye(CLASSES)[np.arange(len(paths)) % CLASSES]

    def one(photos: Any, normalised: bool) -> Pass:
        augmenter = Augmenter(AUGMENT, (size, size), 0, 100)
        data = TrainingPhotos(photos, np.arange(len(paths)), targets, np.ones(len(paths)), augmenter)
        loader, batches = make_loader(data, BATCH, 0, 0, False)

        def run() -> Iterator[Any]:
            batches.epoch += 1
            for batch in loader:
                yield normalise(batch["image"].numpy(), batch["colour"].numpy()) if normalised else batch

        return run

    def normalise(images: np.ndarray, colour: np.ndarray) -> torch.Tensor:
        out = np.empty(images.shape, np.float32)
        for pixels, matrix, place in zip(images, colour, out, strict=True):
            as_input(pixels, matrix, preprocess, place)
        return torch.from_numpy(out).permute(0, 3, 1, 2)

    return {
        "manihot, decoding": one(files, False),
        "manihot, decoding, normalised": one(files, True),
        "manihot, uint8 store": one(store, False),
        "manihot, uint8 store, normalised": one(store, True),
    }


def other_passes(paths: list[Path], size: int) -> dict[str, Pass]:
    """timm's loader, torchvision v2, and, where it is installed, albumentations."""
    from torchvision.io import ImageReadMode, decode_jpeg, read_file
    from torchvision.transforms import v2

    passes: dict[str, Pass] = {}
    folder = timm.data.create_dataset("", root=str(paths[0].parents[1]))

    def timms(prefetcher: bool) -> Iterable[Any]:
        return timm.data.create_loader(
            folder,
            (3, size, size),
            BATCH,
            is_training=True,
            use_prefetcher=prefetcher,
            num_workers=0,
            scale=(0.5, 1.0),
            ratio=(3 / 4, 4 / 3),
            hflip=0.5,
            vflip=0.5,
            color_jitter=0.2,
            mean=MEAN,
            std=STD,
            interpolation="bilinear",
            persistent_workers=False,
            device=torch.device("cpu"),
        )

    # a loader sets the transform of its dataset: each has a dataset of its own when it is passed over
    plain = timms(False)
    folder = timm.data.create_dataset("", root=str(paths[0].parents[1]))
    uint8 = timms(True).loader  # type: ignore[attr-defined]  # what the prefetcher is handed
    passes[TIMM["uint8"]], passes[TIMM["normalised"]] = lambda: uint8, lambda: plain
    pipeline = v2.Compose(
        [
            v2.RandomResizedCrop((size, size), scale=(0.5, 1.0), antialias=True),
            v2.RandomHorizontalFlip(0.5),
            v2.RandomVerticalFlip(0.5),
            v2.ColorJitter(0.2, 0.2, 0.2),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    torchvisions = DataLoader(
        Files(paths, lambda path: pipeline(decode_jpeg(read_file(str(path)), ImageReadMode.RGB))), BATCH, shuffle=True
    )
    passes["torchvision v2"] = lambda: torchvisions
    if find_spec("albumentations"):
        import albumentations as A

        compose = A.Compose(
            [
                A.RandomResizedCrop((size, size), scale=(0.5, 1.0), p=1),
                A.HorizontalFlip(p=0.5),
                A.VerticalFlip(p=0.5),
                A.ColorJitter((0.8, 1.2), (0.8, 1.2), (0.8, 1.2), (0, 0), p=1),
                A.Normalize(MEAN, STD, p=1),
            ],
            seed=0,
        )

        def notebook(path: Path) -> torch.Tensor:
            rgb = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
            return torch.from_numpy(np.ascontiguousarray(compose(image=rgb)["image"].transpose(2, 0, 1)))

        notebooks = DataLoader(Files(paths, notebook), BATCH, shuffle=True)
        passes["opencv + albumentations"] = lambda: notebooks
    return passes


def best_cpu(work: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """CPU seconds of each, the best of several rounds taken in turns after one to warm up."""
    best = dict.fromkeys(work, float("inf"))
    for turn in range(rounds + 1):
        for name, do in work.items():
            start = time.process_time()
            do()
            if turn:
                best[name] = min(best[name], time.process_time() - start)
    return best


def measure_input(paths: list[Path], rounds: int, sizes: Iterable[int]) -> dict[str, dict[str, float]]:
    """Images a second of CPU time, by size and pipeline."""
    found = {}
    for size in sizes:
        passes = manihot_passes(paths, size) | other_passes(paths, size)
        took = best_cpu({name: lambda run=run: [None for _ in run()] for name, run in passes.items()}, rounds)
        found[str(size)] = {name: round(len(paths) / seconds, 1) for name, seconds in took.items()}
        print(size, found[str(size)], flush=True)
    return found


class Case:
    """The network of `standard` on a store of noise, trained by `fit` or by a bare loop over the same loader."""

    def __init__(self, seed: int = 0) -> None:
        photos = np.random.default_rng(0).integers(0, 256, (STEPS_AN_EPOCH * BATCH, 258, 258, 3), dtype=np.uint8)
        whole = load_recipe("standard", [f"train.batch={BATCH}", "train.epochs=1000", "train.precision=fp32"])
        self.recipe: Recipe = whole
        preprocess = make_preprocess(whole.model, (224, 224), "squash")
        self.model = make_model(whole.model, CLASSES, (224, 224), seed).to(memory_format=torch.channels_last)
        targets = np.eye(CLASSES)[np.arange(len(photos)) % CLASSES]
        augmenter = Augmenter(whole.augment, (224, 224), 0, 1000)
        data = TrainingPhotos(photos, np.arange(len(photos)), targets, np.ones(len(photos)), augmenter)
        self.loader, self.batches = make_loader(data, BATCH, 0, 0, False)
        loss = make_loss(whole.loss.name, whole.loss.settings, classes=CLASSES)
        self.state = StepState(torch.device("cpu"), Normalise(preprocess), loss, torch.float32)

    def bare(self) -> Callable[[], None]:
        """One epoch without clipping, average, checkpoint and checks."""
        optimizer = make_optimizer(self.model, self.recipe.optimizer)

        def epoch() -> None:
            set_training(self.model)
            for batch in self.loader:
                images = self.state.normalise(batch["image"], batch["colour"])
                logits = self.model(images)
                loss = torch.nn.functional.cross_entropy(logits, batch["target"], label_smoothing=0.1)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

        return epoch

    def fitted(self, folder: Path) -> Callable[[], None]:
        """One epoch of `fit`, with all that `standard` asks for, and the checkpoint at its end."""
        once = self.recipe.model_copy(update={"train": self.recipe.train.model_copy(update={"epochs": 1})})
        training = Training(self.model, self.loader, self.batches, STEPS["supervised"], self.state)

        def epoch() -> None:
            (folder / "last.ckpt").unlink(missing_ok=True)
            fit(training, once, 0, folder, None, lambda network: None, "fit")

        return epoch


def measure_loop(folder: Path, rounds: int) -> dict[str, Any]:
    """CPU milliseconds of a step: bare, by `fit`, the loader's part, each mix's part."""
    training = Case()
    steps = len(training.batches)
    images = torch.rand(BATCH, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    targets = torch.eye(CLASSES)[torch.arange(BATCH) % CLASSES]
    took = best_cpu(
        {"bare": training.bare(), "fit": training.fitted(folder), "loader": lambda: [None for _ in training.loader]},
        rounds,
    )
    ms = {name: 1000 * seconds / steps for name, seconds in took.items()}
    mixers = {}
    for name in MIXES:
        recipe = training.recipe.model_copy(update={"mixing": (Choice(name=name, p=1.0),)})
        mixers[name] = make_mixer(recipe, steps, 0, training.model)
    mixes = best_cpu(
        {name: lambda mixer=mixer: mixer(images, targets, 0, 0) for name, mixer in mixers.items()}, 4 * rounds
    )
    return {
        "steps": steps,
        "step_ms": {name: round(value, 1) for name, value in ms.items()},
        "rate_of_fit": round(ms["bare"] / ms["fit"], 3),
        "loader_share": round(ms["loader"] / ms["fit"], 4),
        "mix_ms": {name: round(1000 * seconds, 2) for name, seconds in mixes.items()},
        "mix_share": {name: round(1000 * seconds / (ms["fit"] + 1000 * seconds), 4) for name, seconds in mixes.items()},
    }


def against(row: dict[str, float], name: str, other: str) -> str:
    """The rate of one pipeline over another's; a dash where the other was not measured."""
    return f"{row[name] / row[other]:.2f}" if other in row else "-"


def table(found: dict[str, Any]) -> str:
    """Markdown."""
    rows = found["input"]
    lines = [
        f"One thread, CPU time, best of {found['rounds']} rounds; {found['machine']}; commit {found['commit']}; "
        f"{found['date']}. {found['note']}",
        "",
        "| 800 x 600 JPEG to | gives | " + " | ".join(f"{size}, images/s | against timm" for size in rows) + " |",
        "|---" * (2 + 2 * len(rows)) + "|",
    ]
    for name in next(iter(rows.values())):
        kind = "uint8" if name in UINT8 else "normalised"
        cells = [f"{row[name]:.0f} | {against(row, name, TIMM[kind])}" for row in rows.values()]
        lines.append(f"| {name} | {kind} | " + " | ".join(cells) + " |")
    if "loop" not in found:
        return "\n".join(lines)
    loop = found["loop"]
    lines += [
        "",
        f"The network of `standard`, 224 x 224, batch {BATCH}: a step {loop['step_ms']['fit']:.0f} ms by `fit`, "
        f"{loop['step_ms']['bare']:.0f} ms in a bare loop, so `fit` (with clipping, average and a checkpoint "
        f"every {loop['steps']} steps) runs at {loop['rate_of_fit']:.3f} of its rate; the "
        f"loader (uint8 store, this thread) takes {loop['loader_share']:.1%} of the step.",
        "",
        "| mix | ms per batch | share of a step |",
        "|---|---|---|",
        *(f"| {name} | {ms:.1f} | {loop['mix_share'][name]:.1%} |" for name, ms in loop["mix_ms"].items()),
    ]
    return "\n".join(lines)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("input", "loop"), help="measure this part, keep the other's figures")
    parser.add_argument("--note", default="", help="what else the machine was doing")
    parser.add_argument("--table", action="store_true", help="only print the table")
    parser.add_argument("--photographs", type=int, default=PHOTOGRAPHS, help=f"a multiple of {BATCH}")
    parser.add_argument("--sizes", type=int, nargs="+", default=(224, 384))
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the figures are kept")
    options = parser.parse_args()
    if options.photographs % BATCH:
        parser.error(f"--photographs: a multiple of {BATCH}, as timm's loader leaves out what is no whole batch")
    if not options.table:
        cv2.setNumThreads(1)
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as name:
            kept = options.only and options.results.exists()
            found = json.loads(options.results.read_text(encoding="utf-8")) if kept else {}
            if options.only != "loop":
                paths = draw_photographs(Path(name), options.photographs)
                found["photograph_kb"] = round(float(np.mean([path.stat().st_size for path in paths])) / 1000)
                found["input"] = measure_input(paths, options.rounds, options.sizes)
            if options.only != "input":
                found["loop"] = measure_loop(Path(name), options.rounds)
        found |= {
            "rounds": options.rounds,
            "machine": machine(),
            "commit": commit(),
            "date": datetime.date.today().isoformat(),
            "note": options.note,
        }
        save_json(options.results, found)
    print(table(json.loads(options.results.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()

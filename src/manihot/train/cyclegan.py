"""CycleGAN's training (arXiv 1703.10593): two generators and two discriminators on photographs without pairs.

Least-squares adversarial loss, L1 after a way there and back, L1 between a photograph of the target class and what
the generator makes of it, a pool of past pictures for the discriminators, Adam, a rate that is constant and then
falls in a line. After `kill -9` the same call gives bit-identical weights on the same machine: all that is random is
drawn by (seed, epoch), and last.ckpt holds networks, optimisers and pools.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.nn import functional

from manihot.augment.augmenter import Augmenter
from manihot.errors import DataError
from manihot.infer.forward import Photos
from manihot.photos.preprocess import resize
from manihot.progress import say, track
from manihot.records.files import atomic_path, write_atomic
from manihot.records.readers import MOST_TENSORS, check_file, reading
from manihot.records.run_parts import FoldFolder
from manihot.settings import Choice
from manihot.settings.options import Translation
from manihot.train.networks.translators import Generator, make_discriminator, make_generator

WAYS = ("there", "back")  # from the first class to the second, and the other way
POOL = 50  # past pictures that a discriminator may be shown again
BETAS = (0.5, 0.999)
CUT = 1.12  # edge of the stored photograph over the crop's: the paper crops 256 from 286
AUGMENT = (
    Choice(name="random_crop", share=1 / CUT),  # type: ignore[call-arg]
    Choice(name="horizontal_flip"),
)
SHEETS = 10  # pictures of the progress that are kept, spread over the epochs
SHOWN = 4  # photographs of each class on a sheet
LOSSES = ("adversarial", "cycle", "identity", "discriminator")


def adversarial_loss(scores: Tensor, wanted: float) -> Tensor:
    """Least squares: mean of (scores - wanted)^2, `wanted` 1 for photographs and 0 for made pictures."""
    return (scores - wanted).square().mean()


def rate_factor(epoch: int, epochs: int) -> float:
    """Factor on the rate in `epoch` (from 0): 1 in the first half, then in a line to what would be 0 after the last."""
    falling = epochs // 2
    return 1.0 - max(0, epoch + 1 - (epochs - falling)) / (falling + 1)


class Pool:
    """Past pictures: a discriminator sees a new one half the time, else an old one whose place the new one takes."""

    def __init__(self, most: int = POOL) -> None:
        self.most = most
        self.pictures: list[Tensor] = []

    def swap(self, made: Tensor, rng: np.random.Generator) -> Tensor:
        """As many pictures (N, 3, H, W) as were `made`, without gradient."""
        out = []
        for one in made.detach():
            picture = one.clone()  # a view would keep its whole batch, in memory and in the checkpoint
            if len(self.pictures) < self.most:
                self.pictures.append(picture)
                out.append(picture)
            elif rng.random() < 0.5:
                place = int(rng.integers(len(self.pictures)))
                out.append(self.pictures[place])
                self.pictures[place] = picture
            else:
                out.append(picture)
        return torch.stack(out)


class CycleGan:
    """The four networks, their optimisers and pools; `step` learns from photographs of both classes."""

    def __init__(self, settings: Translation, device: torch.device) -> None:
        self.settings, self.device = settings, device
        seeds = [settings.seed * 4 + k for k in range(4)]
        self.generators = nn.ModuleDict(
            {way: make_generator(settings.size, settings.width, seed) for way, seed in zip(WAYS, seeds)}
        ).to(device)
        self.discriminators = nn.ModuleDict(  # by the way that leads to their class
            {way: make_discriminator(settings.size, settings.width, seed) for way, seed in zip(WAYS, seeds[2:])}
        ).to(device)
        self.making = torch.optim.Adam(self.generators.parameters(), settings.lr, BETAS)
        self.judging = torch.optim.Adam(self.discriminators.parameters(), settings.lr, BETAS)
        self.pools = {way: Pool() for way in WAYS}

    def set_rate(self, epoch: int) -> None:
        """The rate of `epoch`, from 0."""
        for optimizer in (self.making, self.judging):
            for group in optimizer.param_groups:
                group["lr"] = self.settings.lr * rate_factor(epoch, self.settings.epochs)

    def step(self, first: Tensor, second: Tensor, rng: np.random.Generator) -> Tensor:
        """Learn from photographs (N, 3, H, W) of both classes; the means of LOSSES over both ways, float32 (4,)."""
        real = {"there": first, "back": second}  # what each way starts from
        self.discriminators.requires_grad_(False)
        made = {way: self.generators[way](real[way]) for way in WAYS}
        parts = self._generator_losses(real, made)
        weight = self.settings.cycle_weight
        loss = parts[0] + weight * parts[1] + weight * self.settings.identity_weight * parts[2]
        self.making.zero_grad(set_to_none=True)
        loss.backward()
        self.making.step()
        self.discriminators.requires_grad_(True)
        judged = torch.zeros((), device=self.device)
        for way, other in zip(WAYS, reversed(WAYS)):
            judge = self.discriminators[way]
            shown = self.pools[way].swap(made[way], rng)
            judged = judged + 0.5 * (adversarial_loss(judge(real[other]), 1) + adversarial_loss(judge(shown), 0))
        self.judging.zero_grad(set_to_none=True)
        judged.backward()
        self.judging.step()
        return torch.stack([*parts, judged]).detach() / 2

    def _generator_losses(self, real: dict[str, Tensor], made: dict[str, Tensor]) -> list[Tensor]:
        """adversarial, cycle and identity, each the sum over both ways."""
        adversarial, cycle, identity = (torch.zeros((), device=self.device) for _ in range(3))
        for way, other in zip(WAYS, reversed(WAYS)):
            adversarial = adversarial + adversarial_loss(self.discriminators[way](made[way]), 1)
            cycle = cycle + functional.l1_loss(self.generators[other](made[way]), real[way])
            if self.settings.identity_weight:
                identity = identity + functional.l1_loss(self.generators[way](real[other]), real[other])
        return [adversarial, cycle, identity]

    def state_dict(self) -> dict[str, Any]:
        """Everything that a continued training needs, as tensors and plain values."""
        parts = {name: getattr(self, name).state_dict() for name in self._parts}
        return parts | {"pools": {way: pool.pictures for way, pool in self.pools.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        for name in self._parts:
            getattr(self, name).load_state_dict(state[name])
        for way in WAYS:
            self.pools[way].pictures = [picture.to(self.device) for picture in state["pools"][way]]

    _parts = ("generators", "discriminators", "making", "judging")


def fit_cyclegan(
    photos: Photos,
    first: np.ndarray,
    second: np.ndarray,
    settings: Translation,
    folder: Path,
    device: torch.device,
    inputs: str,
    names: tuple[str, str],
) -> tuple[CycleGan, list[dict[str, Any]]]:
    """Train on rows `first` and `second` of the store, or go on where a stopped call with the same `inputs` was.

    folder: gets last.ckpt and history.jsonl after every epoch, samples.png (original, translated, and back) and a
    few earlier ones in samples/. inputs: digest of all that decides the result. Returns the networks and one row an
    epoch: epoch, lr, the LOSSES, seconds. Raises DataError when a loss is no longer finite.
    """
    model = CycleGan(settings, device)
    history = _resume(FoldFolder(folder).checkpoint, model, inputs)
    if history:
        say(f"Translators: continue after epoch {len(history)} of {settings.epochs}")
    augmenter = Augmenter(AUGMENT, (settings.size, settings.size), settings.seed, settings.epochs)
    kept = set(np.linspace(1, settings.epochs, min(SHEETS, settings.epochs)).round().astype(int).tolist())
    for epoch in range(len(history), settings.epochs):
        clock = time.perf_counter()
        model.set_rate(epoch)
        rng = np.random.default_rng([settings.seed, epoch, 1])
        steps = list(epoch_pairs(len(first), len(second), settings.batch, settings.seed, epoch))
        what = f"Translators, epoch {epoch + 1}/{settings.epochs}"
        total = torch.zeros(len(LOSSES), device=device)
        for own, other in track(steps, what, total=len(steps)):
            total += model.step(
                to_network(_augmented(augmenter, photos, first, own, epoch), device),
                to_network(_augmented(augmenter, photos, second, other, epoch), device),
                rng,
            )
        row = _row(epoch, model, total / len(steps), time.perf_counter() - clock, what)
        history.append(row)
        rest = (settings.epochs - epoch - 1) * row["seconds"]
        told = ", ".join(f"{name} {row[name]:.3f}" for name in LOSSES)
        say(f"{what}: {told} ({row['seconds']:.0f} s{f', {_duration(rest)} left' if rest else ''})")
        sheet = draw_sheet(model, photos, first, second, settings, names)
        for path in [folder / "samples.png", folder / f"samples/epoch{epoch + 1:04d}.png"][: 1 + (epoch + 1 in kept)]:
            with atomic_path(path) as temporary:
                sheet.save(temporary, "PNG")
        _save(folder, model, history, inputs)
    return model, history


def epoch_pairs(
    first: int, second: int, batch: int, seed: int, epoch: int
) -> Iterator[tuple[list[tuple[int, int]], list[tuple[int, int]]]]:
    """Steps of an epoch: (place, repeat) of photographs of each class, every one at least once.

    The smaller class is gone through again and again, in a new order each time. Decided by (seed, epoch).
    """
    count = max(first, second)
    columns = []
    for number, photographs in enumerate((first, second)):
        rng = np.random.default_rng([seed, epoch, 2 + number])
        order = np.concatenate([rng.permutation(photographs) for _ in range(-(-count // photographs))])[:count]
        seen: Counter[int] = Counter()
        column = []
        for place in map(int, order):
            column.append((place, seen[place]))
            seen[place] += 1
        columns.append(column)
    for places in np.array_split(np.arange(count), -(-count // batch)):
        yield [columns[0][k] for k in places], [columns[1][k] for k in places]


def _augmented(
    augmenter: Augmenter, photos: Photos, rows: np.ndarray, items: Sequence[tuple[int, int]], epoch: int
) -> np.ndarray:
    out = []
    for place, repeat in items:
        row = int(rows[place])
        out.append(augmenter(photos[row], epoch, row + repeat * len(photos))[0])
    return np.stack(out)


def to_network(pictures: np.ndarray, device: torch.device) -> Tensor:
    """uint8 (N, H, W, 3) to float32 (N, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(pictures).to(device).permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


def to_pictures(made: Tensor) -> np.ndarray:
    """float32 (N, 3, H, W) in [-1, 1] to uint8 (N, H, W, 3)."""
    return made.add(1).mul(127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()


@torch.inference_mode()
def translate_pictures(generator: Generator, pictures: np.ndarray, device: torch.device) -> np.ndarray:
    """uint8 (N, H, W, 3), edges multiples of 4, to the same shape."""
    return to_pictures(generator(to_network(pictures, device)))


def _row(epoch: int, model: CycleGan, losses: Tensor, seconds: float, what: str) -> dict[str, Any]:
    values = dict(zip(LOSSES, losses.tolist()))
    if not all(math.isfinite(value) for value in values.values()):
        raise DataError(f"{what}: the losses are {values}", "lower --lr and run again in another folder")
    return {"epoch": epoch, "lr": model.making.param_groups[0]["lr"], **values, "seconds": round(seconds, 2)}


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _save(folder: Path, model: CycleGan, history: list[dict[str, Any]], inputs: str) -> None:
    with atomic_path(FoldFolder(folder).checkpoint) as temporary:
        state = {"inputs": inputs, "history": history, "settings": asdict(model.settings), "model": model.state_dict()}
        torch.save(state, temporary)
    write_atomic(FoldFolder(folder).history, "".join(json.dumps(row) + "\n" for row in history))


def _resume(path: Path, model: CycleGan, inputs: str) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    with reading(path, "a checkpoint of this training", "remove the file to train again"):
        check_file(path, MOST_TENSORS)
        state = torch.load(path, map_location=model.device, weights_only=True)
        if state["inputs"] != inputs:  # other settings or photographs, which --update allowed
            return []
        model.load_state_dict(state["model"])
        return TypeAdapter(list[dict[str, Any]]).validate_python(state["history"])


def draw_sheet(
    model: CycleGan,
    photos: Photos,
    first: np.ndarray,
    second: np.ndarray,
    settings: Translation,
    names: tuple[str, str],
) -> Image.Image:
    """Some photographs of each class, evenly spread: each as it is, translated, and translated back."""
    rows, edge = [], max(settings.size, 128)
    for way, other, own in zip(WAYS, reversed(WAYS), (first, second)):
        chosen = own[np.linspace(0, len(own) - 1, min(SHOWN, len(own))).round().astype(int)]
        original = np.stack([resize(photos[int(row)], (settings.size, settings.size)) for row in chosen])
        made = translate_pictures(model.generators[way], original, model.device)  # type: ignore[arg-type]
        back = translate_pictures(model.generators[other], made, model.device)  # type: ignore[arg-type]
        rows += list(zip(original, made, back))
    font, line, gap = ImageFont.load_default(12), 18, 4
    sheet = Image.new("RGB", (3 * (edge + gap) + gap, len(rows) * (edge + gap) + 2 * line + gap), "white")
    draw, top = ImageDraw.Draw(sheet), 0
    for number, pictures in enumerate(rows):
        if number in (0, min(SHOWN, len(first))):
            texts = names if number == 0 else names[::-1]
            for column, text in enumerate((texts[0], f"as {texts[1]}", "and back")):
                draw.text((gap + column * (edge + gap), top + 2), _shortened(text, font, edge), fill="black", font=font)
            top += line
        for column, picture in enumerate(pictures):
            image = Image.fromarray(picture).resize((edge, edge), Image.Resampling.BICUBIC)
            sheet.paste(image, (gap + column * (edge + gap), top))
        top += edge + gap
    return sheet


def _shortened(text: str, font: Any, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    return next(text[:k] + "..." for k in range(len(text), -1, -1) if font.getlength(text[:k] + "...") <= width)

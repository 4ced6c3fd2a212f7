"""Which precision and memory layout train a model fastest on this machine: measured, not ruled.

bf16 helps ResNets and ViTs on a CPU and hurts depthwise convolutions. The answer is kept in the user's cache
folder, so that a second run on the same machine has the same precision and the same numbers.
"""

from __future__ import annotations

import copy
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from pydantic import TypeAdapter, ValidationError

from manihot.errors import RunFolderError
from manihot.progress import say
from manihot.records.files import write_atomic
from manihot.records.readers import read_json
from manihot.settings import Recipe
from manihot.train.networks.backbones import set_training
from manihot.train.networks.heads import Classifier
from manihot.train.runners import PRECISIONS

GAIN = 1.15  # another way must be this much faster than fp32 in channels_last to be worth its rounding
BATCH, BATCH_OF_GPU = 8, 32  # photographs a step of the measurement, at most
TURNS = 3  # steps of each way; the first warms up
HOPELESS = 4.0  # times as slow as the first way in the step that warms up: not tried again (bf16 on an old CPU: 12)


class Way(NamedTuple):
    """How a network is trained: 'fp32', 'bf16' or 'fp16', and whether its memory is laid out channels last."""

    precision: str
    channels_last: bool

    def __str__(self) -> str:
        return self.precision if self.channels_last else f"{self.precision} without channels_last"


def cache_folder() -> Path:
    """Where small facts about this machine are kept: $MANIHOT_CACHE, or the system's cache folder."""
    own = os.environ.get("MANIHOT_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("LOCALAPPDATA") or os.environ.get("XDG_CACHE_HOME")
    return Path(base) / "manihot" if base else Path.home() / ".cache" / "manihot"


def choose_way(recipe: Recipe, model: Classifier, size: tuple[int, int], device: torch.device) -> Way:
    """What the recipe's `train.precision` and `train.channels_last` ask for, or, for 'auto', what is faster here.

    model: on `device`; it stays as it is, and so do torch's random numbers. Measured once for a backbone, input size
    and machine.
    """
    ways = possible_ways(recipe, device)
    if len(ways) == 1:
        return ways[0]
    batch = BATCH if device.type == "cpu" else min(BATCH_OF_GPU, recipe.train.batch)
    frozen = sum(not p.requires_grad for p in model.parameters())
    key = (
        f"{recipe.model.backbone}, {frozen} frozen, {size[0]}x{size[1]}, batch {batch}, torch {torch.__version__}, "
        f"{describe_processor(device)}, {' or '.join(map(str, ways))}"
    )
    path = cache_folder() / "ways.json"
    known = _remembered(path)
    if key not in known:
        seconds = measure_ways(ways, model, (batch, 3, *size), device, recipe.model.freeze_norm)
        known[key] = fastest(seconds)
        took = ", ".join(f"{way} {1000 * second:.0f} ms" for way, second in seconds.items())
        say(f"Precision: {known[key]} (a training step of {batch}: {took})")
        write_atomic(path, json.dumps(known, indent=1))
    return known[key]


Known = dict[str, tuple[Literal["fp32", "fp16", "bf16"], bool]]


def _remembered(path: Path) -> dict[str, Way]:
    """What earlier runs measured; {} where nothing did, or it can't be read and is measured again."""
    try:
        return {key: Way(*way) for key, way in TypeAdapter(Known).validate_python(read_json(path)).items()}
    except (RunFolderError, ValidationError):
        return {}


def possible_ways(recipe: Recipe, device: torch.device) -> list[Way]:
    """What the recipe leaves open, the way that the others must beat first."""
    asked, layout = recipe.train.precision, recipe.train.channels_last
    precisions = ["fp32"] if asked == "auto" else [asked]
    if asked == "auto" and device.type == "cpu":
        precisions.append("bf16")
    elif asked == "auto" and device.type == "cuda":
        precisions.append("bf16" if torch.cuda.is_bf16_supported() else "fp16")
    layouts = [True, False] if layout == "auto" else [layout]
    return [Way(precision, last) for precision in precisions for last in layouts]


def fastest(seconds: dict[Way, float]) -> Way:
    """The fastest way where it is `GAIN` times as fast as the first, else the first."""
    first, best = next(iter(seconds)), min(seconds, key=lambda way: seconds[way])
    return best if seconds[best] * GAIN < seconds[first] else first


def measure_ways(
    ways: Sequence[Way], model: Classifier, shape: tuple[int, int, int, int], device: torch.device, freeze_norm: bool
) -> dict[Way, float]:
    """Seconds of a training step on noise, forward and backward, the best of a few; all in turns.

    Copies of the model are trained on, so that weights and the statistics of batch norms stay as they are. A way for
    which the GPU's memory doesn't suffice takes for ever.
    """
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    best = dict.fromkeys(ways, float("inf"))
    with torch.random.fork_rng([device] if device.type == "cuda" else []):  # dropout draws
        layouts = {way.channels_last: _layout(way) for way in ways}
        copies = {last: copy.deepcopy(model).to(memory_format=layout) for last, layout in layouts.items()}
        for one in copies.values():
            set_training(one, freeze_norm)
        for turn in range(TURNS):
            for way in ways:
                if turn and hopeless(best, way):
                    continue
                try:
                    took = _step_seconds(
                        copies[way.channels_last], noise.contiguous(memory_format=_layout(way)), way.precision, device
                    )
                except torch.OutOfMemoryError:
                    took = float("inf")
                best[way] = took if turn < 2 else min(best[way], took)
    return best


def hopeless(seconds: dict[Way, float], way: Way) -> bool:
    """Whether a way's time is so far behind the first one's that it needs no second measurement."""
    return seconds[way] > HOPELESS * next(iter(seconds.values()))


def _layout(way: Way) -> torch.memory_format:
    return torch.channels_last if way.channels_last else torch.contiguous_format


def _step_seconds(model: Classifier, images: torch.Tensor, precision: str, device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    with torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "fp32"):
        logits = model(images)
    logits.float().logsumexp(1).mean().backward()
    _wait(device)
    took = time.perf_counter() - start
    model.zero_grad(set_to_none=True)
    return took


def _wait(device: torch.device) -> None:
    """A GPU works while Python goes on."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def describe_processor(device: torch.device) -> str:
    """What computes, for the key of a measurement: the GPU's name, or the CPU's with its vector units and threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = _cpu_name() or platform.processor() or platform.machine()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"


def _cpu_name() -> str:
    """The CPU's model as the system names it; '' where it doesn't say."""
    try:
        if sys.platform == "win32":
            import winreg

            with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, r"HARDWARE\DESCRIPTION\System\CentralProcessor\0") as key:
                return str(winreg.QueryValueEx(key, "ProcessorNameString")[0]).strip()
        if sys.platform == "darwin":
            words = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(words, capture_output=True, text=True, timeout=10).stdout.strip()
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except (OSError, subprocess.SubprocessError):
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")

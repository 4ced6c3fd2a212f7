"""Which precision is faster for a model on this machine: measured, not ruled.

bf16 helps ResNets and ViTs on a CPU and hurts depthwise convolutions. The answer is kept in the user's cache
folder, so that a second run on the same machine has the same precision and the same numbers.
"""

from __future__ import annotations

import json
import os
import platform
import time
from pathlib import Path

import torch

from manihot.models.heads import Classifier
from manihot.progress import say
from manihot.records.runs import write_atomic

GAIN = 1.15  # bf16 must be this much faster to be worth its rounding


def cache_folder() -> Path:
    """Where small facts about this machine are kept: $MANIHOT_CACHE, or the system's cache folder."""
    own = os.environ.get("MANIHOT_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("LOCALAPPDATA") or os.environ.get("XDG_CACHE_HOME")
    return Path(base) / "manihot" if base else Path.home() / ".cache" / "manihot"


def choose_precision(
    wanted: str, model: Classifier, name: str, size: tuple[int, int], device: torch.device
) -> str:
    """'fp32', 'bf16' or 'fp16': what is asked for, or, for 'auto', what is faster here."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    if device.type != "cpu":
        return "fp32"
    frozen = sum(not p.requires_grad for p in model.parameters())
    machine = platform.processor() or platform.machine()
    key = (
        f"{name}, {frozen} frozen, {size[0]}x{size[1]}, torch {torch.__version__}, {machine}, "
        f"{torch.get_num_threads()} threads"
    )
    path = cache_folder() / "precision.json"
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    if key not in known:
        seconds = {precision: _step_seconds(model, size, precision) for precision in ("fp32", "bf16")}
        known[key] = "bf16" if seconds["bf16"] * GAIN < seconds["fp32"] else "fp32"
        say(
            f"Precision: {known[key]} (a step of 8: "
            f"fp32 {seconds['fp32']:.2f} s, bf16 {seconds['bf16']:.2f} s)"
        )
        write_atomic(path, json.dumps(known, indent=1))
    return known[key]


def _step_seconds(model: Classifier, size: tuple[int, int], precision: str) -> float:
    """Seconds of a forward and backward pass of 8 photographs, the better of two; weights untouched."""
    images = torch.zeros(8, 3, *size).contiguous(memory_format=torch.channels_last)
    was_training = model.training
    model.eval()  # so that batch-norm statistics stay as they are
    best = float("inf")
    for attempt in range(3):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = model(images).float().logsumexp(1).mean()
        loss.backward()
        if attempt:
            best = min(best, time.perf_counter() - start)
    model.zero_grad(set_to_none=True)
    model.train(was_training)
    return best

"""How far ahead each photograph's given label was while a network learned: evidence about the label, for the audit.

The margin is the logit of the label that stands in the manifest less the highest other one, whatever label is learned
in its place. A wrong label is learned late, against the photographs that it looks like, so its margins stay low (area
under the margin: Pleiss et al. 2020, arXiv 2001.10528). They are noted from the passes that training makes anyhow:
nothing is drawn, changed or computed twice. Batches whose labels were mixed say nothing of a single photograph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from manihot.audit.evidence import read_margins
from manihot.records.files import atomic_path
from manihot.records.run_parts import FoldFolder
from manihot.train.distributed import gather


class Margins:
    """Notes the margins of an epoch's batches, by place in the training labels.

    image_id, given: name and class number of each place, (n,); -1 where no label was given. classes: how many outputs
    of the network are classes; an output `unknown` behind them is none.
    """

    def __init__(self, image_id: np.ndarray, given: np.ndarray, classes: int, device: torch.device) -> None:
        self.image_id, self.classes = image_id, classes
        self.given = torch.from_numpy(np.asarray(given, dtype=np.int64)).to(device)
        self._noted: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def note(self, places: Tensor, logits: Tensor, mixed: bool = False) -> None:
        """Note a batch: places (b,) of its photographs, logits (b, K or more); nothing is waited for."""
        label, values = self.given[places], logits.detach()[:, : self.classes].float()
        own = label.clamp(min=0)[:, None]
        margin = values.gather(1, own)[:, 0] - values.scatter(1, own, -torch.inf).amax(1)
        known = (label >= 0) & (not mixed)
        self._noted.append((places, margin.where(known, torch.nan)))

    def end_epoch(self) -> Tensor:
        """Mean margin (n,) float32 of each photograph since the last call, over all processes; NaN where unknown."""
        n, noted, self._noted = len(self.image_id), self._noted, []
        if not noted:
            return torch.full((n,), torch.nan)
        own = [torch.cat(part).cpu().numpy() for part in zip(*noted)]
        places, margin = map(np.concatenate, zip(*gather(own)))
        margin = margin.astype(np.float64)
        seen = np.isfinite(margin)  # half precision may overflow
        times = np.bincount(places[seen], minlength=n)
        total = np.bincount(places[seen], weights=margin[seen], minlength=n)
        return torch.from_numpy(np.where(times > 0, total / np.maximum(times, 1), np.nan).astype(np.float32))

    def save(self, folder: Path, epochs: Mapping[int, Tensor]) -> None:
        """Write `folder`/margins.parquet: image_id, epoch and margin, what is not known left out."""
        parts = []
        for epoch, margin in sorted(epochs.items()):
            values = margin.cpu().numpy()
            known = np.flatnonzero(np.isfinite(values))
            parts.append(pd.DataFrame({"image_id": self.image_id[known], "epoch": epoch, "margin": values[known]}))
        _write(folder, parts)


def join_margins(folder: Path, stages: Sequence[Path], epochs: Sequence[int]) -> None:
    """The stages' margins as one table in `folder`, epochs counted on; epochs: how many each stage took."""
    parts, before = [], 0
    for place, count in zip(stages, epochs):
        if FoldFolder(place).margins.is_file():  # a stage that learned clusters has none
            table = read_margins(FoldFolder(place).margins)
            parts.append(table.assign(epoch=table["epoch"] + before))
        before += count
    _write(folder, parts)


def _write(folder: Path, parts: list[pd.DataFrame]) -> None:
    nothing = pd.DataFrame({"image_id": np.empty(0, object), "epoch": np.empty(0, int), "margin": np.empty(0)})
    table = pd.concat(parts, ignore_index=True) if parts else nothing
    table = table.astype({"image_id": str, "epoch": np.int32, "margin": np.float32})
    with atomic_path(FoldFolder(folder).margins) as temporary:
        table.to_parquet(temporary, index=False)

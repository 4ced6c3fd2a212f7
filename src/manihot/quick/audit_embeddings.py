"""Embeddings for the audit of fine-tuned runs, whose own networks have learned the labels that are to be judged.

A frozen pretrained backbone, the embedded one, embeds every photograph that was predicted out of fold once.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from manihot.audit.evidence import save_embeddings
from manihot.members.member import make_member
from manihot.members.toolbox import Toolbox
from manihot.progress import say
from manihot.quick.fold import features_of
from manihot.records.files import digest_value
from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions
from manihot.records.run_folder import Files, RunFolder
from manihot.settings import Model, Photo, Recipe, View

LOOK = Recipe(  # the views of the recipe `quick`, but one of them, smaller, and straight from the files
    name="audit",
    method="features",
    photo=Photo(area=224 * 224, store_scale=1.0, store="none"),
    model=Model(pooling="avgmax", taps=(2, 3), power=True, dropout=0.0),
    tta=(View(),),
)


def embed_for_audit(run: RunFolder, manifest: Manifest, oof: Path) -> Path | None:
    """RUN/audit/embeddings.parquet of the photographs predicted in `oof`; None where the predictions hold their own.

    A stage that is done once; a stopped one goes on after the last 256 photographs (RUN/features).
    """
    predictions = Predictions.load(oof)
    if predictions.embeddings is not None:
        return None
    few = manifest.take(np.isin(manifest.image_id, predictions.image_id))
    inputs = [digest_value(few.table[["image_id", "sha256"]].to_numpy().tolist()), LOOK.resolved()]

    def work() -> Files:
        say(
            f"Embeddings for the audit: a frozen network embeds {len(few)} photographs once, for their neighbours "
            "and outliers (audit.embeddings=false leaves it out)"
        )
        member = make_member(run, "audit", LOOK, few, Toolbox())
        save_embeddings(run.audit.embeddings, few.image_id, features_of(member)[1][:, 0])
        return [run.audit.embeddings]

    run.stage("audit embeddings", inputs, work)
    return run.audit.embeddings

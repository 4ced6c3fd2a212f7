"""A map of the photographs in two dimensions: what a network finds alike lies together.

The lecture shows such a map of its features, and photographs of DBSCAN's clusters beside it. Here principal components
and then t-SNE (van der Maaten and Hinton 2008), which keeps neighbours together; distances across the map mean nothing.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.manifold import TSNE

from manihot.audit.label_neighbours import reduce_embeddings

MOST = 1500  # photographs on the map: 2 s of one core
SUSPICIOUS = 500  # of them, at most, those whose labels look wrong
FEWEST = 10
COMPONENTS = 50
PERPLEXITY = 30.0
STEPS = 500


def map_photographs(issues: pd.DataFrame, image_id: np.ndarray, embeddings: np.ndarray, seed: int = 0) -> pd.DataFrame:
    """Places of judged photographs on a map: image_id, x, y, given_label, is_label_issue; no rows for fewer than 10.

    issues: the table of `label_issues`. embeddings (N, D) of image_id (N,). Of more than MOST photographs those whose
    labels look wrong are there, up to SUSPICIOUS of the worst, and others drawn by `seed`. x and y run from 0 to 1.
    """
    columns = ["image_id", "given_label", "is_label_issue"]
    rows = pd.Index(image_id).get_indexer(pd.Index(issues["image_id"]))
    known = issues.assign(row=rows)[rows >= 0].sort_values("label_score", kind="stable", ignore_index=True)
    wrong = known[known["is_label_issue"].astype(bool)].head(SUSPICIOUS)
    others = known.drop(index=wrong.index)
    room = MOST - len(wrong)
    if len(others) > room:
        others = others.iloc[np.sort(np.random.default_rng(seed).permutation(len(others))[:room])]
    shown = pd.concat([wrong, others]).sort_values("row", kind="stable", ignore_index=True)
    if len(shown) < FEWEST:
        return shown.head(0)[columns].assign(x=np.empty(0), y=np.empty(0))
    places = place_on_map(embeddings[shown["row"].to_numpy()], seed)
    return shown[columns].assign(x=places[:, 0], y=places[:, 1])


def place_on_map(embeddings: np.ndarray, seed: int = 0) -> np.ndarray:
    """Places (N, 2) from 0 to 1 of embeddings (N, D); the same every time on one machine."""
    features = reduce_embeddings(embeddings, min(COMPONENTS, len(embeddings) - 1))
    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    model = TSNE(2, perplexity=perplexity, init="pca", max_iter=STEPS, random_state=seed, n_jobs=1)
    found = model.fit_transform(features).astype(np.float64)
    span = found.max(axis=0) - found.min(axis=0)
    places: np.ndarray = (found - found.min(axis=0)) / np.where(span > 0, span, 1)
    return places

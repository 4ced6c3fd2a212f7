"""Sources: what is only trained on is never held out; what is left out is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from manihot.audit.folds import assign_folds
from manihot.audit.sources import narrow, use_sources
from manihot.errors import SettingsError
from manihot.records.manifest import Manifest
from manihot.settings import Folds, Source, load_recipe

CLASSES = ("healthy", "rust", "mosaic")


@pytest.fixture
def manifest() -> Manifest:
    n = 60
    table = pd.DataFrame(
        {
            "image_id": [f"{i}.jpg" for i in range(n)],
            "path": [f"{i}.jpg" for i in range(n)],
            "label": np.arange(n) % 3,
            "source": np.where(np.arange(n) < 30, "2020", "2019"),
        }
    )
    return Manifest.from_table(table, CLASSES, Path())


def test_a_source_for_training_is_never_held_out(manifest: Manifest):
    used, said = use_sources(manifest, {"2019": Source(use="train")})
    fold, _ = assign_folds(used, Folds(n=3), 0)
    assert len(used) == 60 and said == ["source '2019': trained on only, 30 of 30 photographs"]
    assert (fold[30:] == -1).all() and (fold[:30] >= 0).all()
    assert (used.labels == manifest.labels).all()


def test_some_classes_of_a_source(manifest: Manifest):
    used, said = use_sources(manifest, {"2019": Source(use="train", but=("mosaic",))})
    old = used.table[used.table["source"] == "2019"]
    assert len(old) == 20 and (old["label"] != 2).all() and "20 of 30" in said[0]
    only, _ = use_sources(manifest, {"2019": Source(classes=("mosaic",))})
    assert (only.labels[only.table["source"] == "2019"] == 2).all() and len(only) == 40


def test_photographs_of_a_source_by_their_size(manifest: Manifest):
    n = len(manifest)
    sized = manifest.with_columns(height=np.where(np.arange(n) % 2, 480, 600), width=np.arange(n) * 20 + 500)
    limits = Source(use="train", min_edge=500, max_edge=1300)
    used, said = use_sources(sized, {"2019": limits})
    # of 30 to 59: even ones are 600 high, and up to number 40 at most 1300 wide
    assert sorted(used.image_id[30:]) == [f"{i}.jpg" for i in (30, 32, 34, 36, 38, 40)]
    assert said == ["source '2019': trained on only, 6 of 30 photographs"]
    labelled, unlabelled = narrow(sized, {"2019": Source(min_edge=500, max_edge=1300)})
    assert labelled[:30].all() and labelled.sum() == 36 and not unlabelled.any()
    unknown = sized.with_columns(height=np.zeros(n, dtype=int))
    with pytest.raises(SettingsError, match="the sizes of 30 photographs are not known"):
        use_sources(unknown, {"2019": limits})


def test_labels_that_are_not_looked_at_and_sources_left_out(manifest: Manifest):
    blind, _ = use_sources(manifest, {"2019": Source(use="unlabelled")})
    assert (blind.labels[30:] == -1).all() and (assign_folds(blind, Folds(n=3), 0)[0][30:] == -1).all()
    gone, _ = use_sources(manifest, {"2019": Source(use="ignore")})
    assert len(gone) == 30
    assert len(manifest) == 60 and (manifest.labels >= 0).all()  # the given manifest is as it was
    assert use_sources(manifest, {})[0] is manifest


def test_what_does_not_exist_is_named(manifest: Manifest):
    with pytest.raises(SettingsError, match=r"(?s)2018.*2019"):
        use_sources(manifest, {"2018": Source()})
    with pytest.raises(SettingsError, match=r"(?s)mosaik.*mosaic"):
        use_sources(manifest, {"2019": Source(but=("mosaik",))})
    with pytest.raises(SettingsError, match="use"):
        load_recipe("quick", ["sources={2019: {use: sometimes}}"])
    assert load_recipe("quick", ["sources={2019: {use: train}}"]).sources["2019"].use == "train"

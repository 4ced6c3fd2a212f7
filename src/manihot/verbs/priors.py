"""Verbs on class shares: estimate them from a leaderboard, and adapt predictions to other shares."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from manihot.errors import SettingsError
from manihot.verbs.options import Out, Place, Seed
from manihot.verbs.places import as_path
from manihot.verbs.results import SharesResult


def probe_prior(
    sample: Annotated[Place, Parameter(help="The competition's sample submission.")],
    *,
    out: Out,
    classes: Annotated[Place | None, Parameter(help="The class map, MAP.json; the columns of a wide sample.")] = None,
    scores: Annotated[Sequence[str], Parameter(help="Scores of the probes: CLASS=.602, or NUMBER=.602.")] = (),
    photographs: Annotated[int, Parameter(help="Number of photographs scored; those of the sample by default.")] = 0,
) -> SharesResult:
    """Estimate the class shares of a competition's test photographs from submissions of one class each.

    Writes one such submission per class into OUT. Submit them (all but one are enough), then pass their scores:

    manihot probe-prior sample_submission.csv --classes MAP.json --out probes --scores 0=.048 1=.106 2=.103 3=.602

    OUT/shares.csv then has each class's share with its binomial error, for `manihot reweight --shares`. Photographs
    that a public leaderboard scores may be a third of them: --photographs says how many.
    """
    from manihot.photos.labels import load_classes
    from manihot.records.submissions import Sample
    from manihot.trust.probing import save_probed, write_probes

    wanted = Sample.load(Path(sample))
    if classes is not None:
        named = load_classes(Path(classes))
        names, numbers = named.names, tuple(named.by_name[name] for name in named.names)
    elif len(wanted.header) > 2:
        names, numbers = wanted.header[1:], tuple(range(len(wanted.header) - 1))
    else:
        raise SettingsError(
            f"{sample} names one answer per photograph, and not which classes there are", "give --classes MAP.json"
        )
    files = write_probes(Path(sample), Path(out), names, numbers)
    table = (
        save_probed(Path(out), scores, dict(zip(names, numbers)), photographs or len(wanted.ids)) if scores else None
    )
    return SharesResult(files=tuple(files), shares=table)


def reweight(
    predictions: Annotated[Place, Parameter(help="Predictions of the new photographs: parquet or CSV.")],
    *,
    oof: Annotated[Place, Parameter(help="The run's out-of-fold predictions, with labels.")],
    out: Out,
    shares: Annotated[Place | None, Parameter(help="CSV class,share; estimated by default.")] = None,
    method: Annotated[str, Parameter(help="Estimator of the shares: em or bbse.")] = "em",
    seed: Seed = 0,
) -> SharesResult:
    """Adapt predictions to class shares that differ from training: p x new share / old share.

    Shares are those of a file (`probe-prior`, or your own knowledge), or estimated from the predictions themselves:
    em (Saerens, on calibrated probabilities) or bbse (black-box shift estimation). Either supposes that photographs
    of a class look as they did in training. Writes OUT, and OUT's name with .shares.csv beside it.
    """
    from manihot.trust.probing import reweight_file

    table = reweight_file(Path(predictions), Path(oof), Path(out), as_path(shares), method, seed)
    return SharesResult(files=(Path(out),), shares=table)

"""Commands on saved predictions: no photographs, no torch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from manihot.cli.options import Out
from manihot.errors import DataError, SettingsError
from manihot.progress import say
from manihot.records.run_places import BlendFolder, TrustFolder

Oof = Annotated[
    list[Path],
    Parameter(help="Out-of-fold predictions, one file a member: parquet, or CSV image_id,label,c0,c1,..."),
]
OofOrRun = Annotated[
    list[Path],
    Parameter(
        help="Out-of-fold predictions, one file a member: parquet, or CSV image_id,label,c0,c1,...; with --plan the "
        "run folder that holds predictions/"
    ),
]
Test = Annotated[
    list[Path] | None,
    Parameter(name="--test", help="The members' test predictions, in the same order.", consume_multiple=True),
]
BlendMethod = Annotated[str, Parameter(help="auto, uniform, a mean or a search.")]
Stackers = Annotated[
    list[str] | None,
    Parameter(help="logistic, lightgbm, mlp, cnn1d, cnn2d; several are averaged.", consume_multiple=True),
]
Weights = Annotated[list[float] | None, Parameter(help="Fixed weights, one a member.", consume_multiple=True)]
Groups = Annotated[Path | None, Parameter(help="manifest.parquet whose groups keep duplicates together.")]


def blend(
    oof: OofOrRun, *, out: Out, test: Test = None, method: BlendMethod = "auto", weights: Weights = None,
    mean: Annotated[str, Parameter(help="arithmetic, geometric, power or rank.")] = "arithmetic",
    plan: Annotated[
        str | None,
        Parameter(help="A file of members, views and weights, or the name of one that comes with the package."),
    ] = None,
    costs: Annotated[
        Path | None,
        Parameter(help="CSV member,latency,download: also say which cheaper blends nothing beats, in OUT/pareto.csv."),
    ] = None,
    manifest: Groups = None, seed: int = 0,
) -> None:  # fmt: skip
    """Combine members' predictions, and say what the blend is worth on photographs it was not fitted on.

    `auto` is plain averaging unless nested cross-validation shows that a fitted blend is better. A plan says it all
    itself: `manihot blend RUN --plan lecture-avengers --out DIR`.
    """
    from manihot.ensemble.files import blend_files, blend_plan

    if plan is None:
        found = blend_files(oof, out, test or (), method, weights, mean, manifest, seed=seed)
        if costs is not None:
            from manihot.ensemble.diversity import cheaper_blends

            front = cheaper_blends(oof, costs, out)
            say(f"Blends that nothing beats in accuracy, seconds and bytes: {len(front)}, in {out / 'pareto.csv'}")
    elif test or weights or costs or method != "auto" or mean != "arithmetic" or len(oof) != 1:
        raise SettingsError(
            "a plan says which files, weights and mean are taken",
            "give one folder and --plan, without --test, --method, --weights, --mean and --costs",
        )
    else:
        found = blend_plan(plan, oof[0], out, manifest, seed)
    say(f"Blend: {found['method']}, written to {BlendFolder(out).summary}")


def stack(
    oof: Oof, *, out: Out, test: Test = None, method: Stackers = None, manifest: Groups = None, seed: int = 0,
) -> None:  # fmt: skip
    """Fit a second level on members' out-of-fold predictions, and say whether it gains over plain averaging."""
    from manihot.ensemble.files import stack_files
    from manihot.ensemble.stack import FITTED_BY_TORCH

    if set(method or ()) & set(FITTED_BY_TORCH):
        import manihot.train.stackers  # noqa: F401  # fills STACKERS
    found = stack_files(oof, out, test or (), method or ("logistic",), manifest, seed=seed)
    verdict = "a gain over plain averaging" if found["gain"] else "no gain over plain averaging beyond chance"
    scores = f"right {found['accuracy']:.2%}, plain average {found['plain_accuracy']:.2%}"
    say(f"Stack: {scores}: {verdict}; written to {out}")


def check_submission(
    file: Annotated[Path, Parameter(help="A submission.")],
    sample: Annotated[Path, Parameter(help="The competition's sample submission.")],
) -> None:
    """Report what differs between a submission and the sample: header, ids, their order, names or numbers.

    The exit code is 0 where nothing differs, 3 where something does.
    """
    from manihot.records.submissions import check_submission as compare

    found = compare(file, sample)
    for sentence in found:
        print(f"{file}: {sentence}")
    if found:
        sys.exit(DataError.exit_code)
    print(f"{file}: as {sample} has it")


def calibrate(
    oof: Annotated[Path, Parameter(help="Out-of-fold predictions: parquet or CSV.")], *, out: Out,
    kind: Annotated[str, Parameter(help="auto, none, temperature, vector, isotonic, confidence.")] = "auto",
    coverage: Annotated[float, Parameter(help="Share of photographs whose set of answers must hold the truth.")] = 0.9,
    sets: Annotated[str, Parameter(help="lac, aps or raps.")] = "lac",
    per_class: Annotated[bool, Parameter(help="The share holds in every class, or on the whole alone.")] = True,
    manifest: Groups = None, seed: int = 0,
) -> None:  # fmt: skip
    """Make probabilities mean what they say, and fit sets of answers that hold the truth as often as you name."""
    from manihot.trust.files import calibrate_files

    calibrate_files(oof, out, kind, coverage, per_class, sets, manifest=manifest, seed=seed)
    say(f"Calibration and sets: {TrustFolder(out).summary}")


def decide(
    predictions: Annotated[Path, Parameter(help="Predictions: parquet or CSV.")],
    costs: Annotated[Path, Parameter(help="YAML such as `missed: {mosaic: 10}`, or a matrix as CSV.")], *, out: Out,
    calibrator: Annotated[Path | None, Parameter(help="calibrator.json of `manihot calibrate` or RUN/trust.")] = None,
    manifest: Groups = None, seed: int = 0,
) -> None:  # fmt: skip
    """Answer so that mistakes cost least, where a missed disease costs more than a false alarm.

    Says "ask an expert" where that is cheaper. Writes OUT/decisions.csv and OUT/costs.json, with the saving against
    plain answers where labels are known.
    """
    from manihot.trust.costs import decide_files

    decide_files(predictions, costs, out, calibrator=calibrator, manifest=manifest, seed=seed)
    say(f"Decisions: {out / 'decisions.csv'}")

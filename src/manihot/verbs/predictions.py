"""Verbs on saved predictions: no photographs, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from manihot.errors import SettingsError
from manihot.extras import need_train
from manihot.records.run_parts import TrustFolder
from manihot.settings.options import USUAL_BLEND
from manihot.verbs.options import FILES, How, Manifest, Out, Place, Places, Seed
from manihot.verbs.places import as_path, as_paths
from manihot.verbs.results import BlendResult, CalibrateResult, DecideResult, SubmissionCheck

MEMBERS = "Out-of-fold predictions, one file per member: parquet, or CSV image_id,label,c0,c1,..."
Test = Annotated[Places, FILES, Parameter(help="The members' test predictions, in the same order.", show_default=False)]


def blend(
    oof: Annotated[Places, Parameter(help=f"{MEMBERS}; with --plan the run folder that holds predictions/")],
    *,
    out: Out,
    test: Test = (),
    how: How = USUAL_BLEND,
    plan: Annotated[
        Place | None, Parameter(help="A file of members, views and weights, or the name of a built-in one.")
    ] = None,
    costs: Annotated[
        Place | None,
        Parameter(help="CSV member,latency,download: also find the Pareto-optimal cheaper blends (pareto.csv)."),
    ] = None,
    manifest: Manifest = None,
    seed: Seed = 0,
) -> BlendResult:
    """Combine members' predictions, and measure the blend on photographs it was not fitted on.

    `auto` is plain averaging unless nested cross-validation shows that a fitted blend is better. A plan says it all
    itself: `manihot blend RUN --plan lecture-avengers --out DIR`. With --views each test-time view of each member gets
    a weight of its own: `manihot blend RUN --views --method greedy --out DIR`.
    """
    from manihot.ensemble.files import blend_files, blend_plan, views_of_run
    from manihot.records.summaries import Blended

    members, tests, groups, cheaper = as_paths(oof), as_paths(test), as_path(manifest), None
    if plan is not None:
        if tests or costs or how != USUAL_BLEND or len(members) != 1:
            raise SettingsError(
                "a plan says which files, weights and mean are taken",
                "give one folder and --plan, without --test, --method, --weights, --mean and --costs",
            )
        found = blend_plan(str(plan), members[0], Path(out), groups, seed)
    else:
        if how.views:
            if len(members) != 1 or tests or costs is not None:
                raise SettingsError(
                    "--views weighs the views of one run", "give one run folder, without --test, --costs"
                )
            members, tests = views_of_run(members[0])
        found = blend_files(members, Path(out), tests, how.method, how.weights or None, how.mean, groups, seed=seed)
        if costs is not None:
            from manihot.ensemble.diversity import cheaper_blends

            cheaper = len(cheaper_blends(members, Path(costs), Path(out)))
    return BlendResult(out=Path(out), record=Blended.model_validate(found), cheaper=cheaper)


def stack(
    oof: Annotated[Places, Parameter(help=MEMBERS)],
    *,
    out: Out,
    test: Test = (),
    method: Annotated[Sequence[str], Parameter(help="logistic, lightgbm, mlp, cnn1d, cnn2d; several are averaged.")] = (
        "logistic",
    ),
    manifest: Manifest = None,
    seed: Seed = 0,
) -> BlendResult:
    """Fit a second-level model on members' out-of-fold predictions, and test it against plain averaging."""
    from manihot.ensemble.files import stack_files
    from manihot.ensemble.stack import FITTED_BY_TORCH
    from manihot.records.summaries import Blended

    by_torch = [name for name in method if name in FITTED_BY_TORCH]
    if by_torch:
        need_train(f"the stacker {by_torch[0]}")
        import manihot.train.stackers  # noqa: F401  # fills STACKERS
    found = stack_files(as_paths(oof), Path(out), as_paths(test), method, as_path(manifest), seed=seed)
    return BlendResult(out=Path(out), record=Blended.model_validate(found))


def calibrate(
    oof: Annotated[Place, Parameter(help="Out-of-fold predictions: parquet or CSV.")],
    *,
    out: Out,
    kind: Annotated[str, Parameter(help="auto, none, temperature, vector, isotonic, confidence.")] = "auto",
    coverage: Annotated[float, Parameter(help="Share of prediction sets that must contain the true class.")] = 0.9,
    sets: Annotated[str, Parameter(help="lac, aps or raps.")] = "lac",
    per_class: Annotated[
        bool, Parameter(negative="--no-per-class", help="Guarantee the coverage in every class, or only overall.")
    ] = True,
    manifest: Manifest = None,
    seed: Seed = 0,
) -> CalibrateResult:
    """Calibrate probabilities, and fit prediction sets with the coverage you choose."""
    from manihot.trust.files import calibrate_files

    found = calibrate_files(
        Path(oof), Path(out), kind, coverage, per_class, sets, manifest=as_path(manifest), seed=seed
    )
    return CalibrateResult(
        path=TrustFolder(Path(out)).summary,
        photographs=found["photographs"],
        kind=found["chosen"],
        ece_before=found["ece"]["before"],
        ece_after=found["ece"]["after"],
    )


def decide(
    predictions: Annotated[Place, Parameter(help="Predictions: parquet or CSV.")],
    costs: Annotated[Place, Parameter(help="YAML such as `missed: {mosaic: 10}`, or a matrix as CSV.")],
    *,
    out: Out,
    calibrator: Annotated[Place | None, Parameter(help="calibrator.json of `manihot calibrate` or RUN/trust.")] = None,
    manifest: Manifest = None,
    seed: Seed = 0,
) -> DecideResult:
    """Choose the answer with the lowest expected cost, where a missed disease costs more than a false alarm.

    Answers "ask an expert" where that is cheaper. Writes OUT/decisions.csv and OUT/costs.json, with the saving against
    plain answers where labels are known.
    """
    from manihot.trust.costs import decide_files

    found = decide_files(
        Path(predictions), Path(costs), Path(out), calibrator=as_path(calibrator), manifest=as_path(manifest), seed=seed
    )
    return DecideResult(
        decisions=Path(out) / "decisions.csv",
        **{name: found[name] for name in ("photographs", "asked", "changed", "expected_cost")},
    )


def check_submission(
    file: Annotated[Place, Parameter(help="A submission.")],
    sample: Annotated[Place, Parameter(help="The competition's sample submission.")],
) -> SubmissionCheck:
    """Report how a submission differs from the sample submission: header, ids, their order, names or numbers.

    The exit code is 0 if nothing differs, 3 otherwise.
    """
    from manihot.records.submissions import check_submission as differences

    found = differences(Path(file), Path(sample))
    return SubmissionCheck(file=Path(file), sample=Path(sample), differences=tuple(found))

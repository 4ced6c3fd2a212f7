"""A suite on photographs: train what is not trained yet, compare, and rewrite the tables after every arm.

OUT is a run folder whose members are the arms. Beside what a run leaves there it holds suite.csv and suite.json, and
suite.png and suite.html, which are drawn from suite.json.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from manihot.engines import describe, make_toolbox
from manihot.errors import DataError, ManihotError, RunFolderError
from manihot.members.crossval import collect, in_order, train_fold
from manihot.members.member import make_member
from manihot.members.other_views import look_again
from manihot.members.toolbox import Toolbox
from manihot.pipeline import check_settings, prepare
from manihot.progress import say
from manihot.records.csv_files import save_csv
from manihot.records.files import digest_file, digest_value, save_json
from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions
from manihot.records.run_folder import RunFolder
from manihot.settings import Recipe
from manihot.settings.options import EVERYTHING_GUESSED, TableOptions
from manihot.suites.format import BASELINE, Suite, load_suite
from manihot.suites.verdicts import AGREES, CANNOT_TELL, CONTRADICTS, LEVEL, Effect, compare_pairs, judge

COLUMNS = [
    "arm",
    "table",
    "against",
    "change",
    "status",
    "why",
    "verdict",
    "reported",
    "said",
    "judgement",
    "photographs",
    "accuracy",
    "accuracy_against",
    "difference",
    "low",
    "high",
    "p",
    "holm",
    "beyond_chance",
    "log_loss_difference",
    "log_loss_low",
    "log_loss_high",
    "chance",
]


def run_suite(
    name: str | Path,
    photos: Path | Sequence[Path],
    out: Path,
    *,
    only: Sequence[str] = (),
    overrides: Sequence[str] = (),
    second: str = "",
    second_but: Sequence[str] = (),
    device: str = "auto",
    workers: int = 2,
    update: bool = False,
    columns: TableOptions = EVERYTHING_GUESSED,
) -> pd.DataFrame:
    """Train a suite's arms on photographs and compare them; one row an arm with the columns of COLUMNS.

    name: a suite of the package or a path. only: these arms and those that they need. overrides: `key=value`, settings
    of the baseline and so of every arm. second, second_but: see `load_suite`. photos, update, columns: see
    `manihot.run`. An arm that ends with an error is named with it, and the others go on. Raises ManihotError; the same
    call continues a stopped suite, and other `only` add to it.
    """
    suite = load_suite(name, overrides, second=second, second_but=second_but)
    check_settings(suite.recipe)
    chosen, skipped = suite.choose(only)
    with RunFolder(Path(out)) as folder:
        # an arm without its weights is named with that error, and the others go on
        manifest = prepare(folder, suite.recipe, photos, columns, workers, update, weights=False)
        folds = folds_of(manifest, suite.recipe)
        for arm in chosen:
            if _needs_all_folds(suite, arm, manifest, folds):
                skipped[arm] = "needs out-of-fold answers for all photographs (hold out every fold, not folds.only)"
        chosen = [arm for arm in chosen if arm not in skipped]
        tools = make_toolbox(suite.recipe, device)
        folder.update_record(suite=suite.name, device=describe(tools))
        digests = {arm: arm_digest(suite, arm, folder) for arm in suite.arms}
        failed = _train(folder, suite, chosen, manifest, folds, digests, (tools, workers), skipped)
        table = write_results(folder, suite, digests, {**skipped, **failed}, failed)
        folder.update_record(finished=time.time())
    return table


def _train(
    folder: RunFolder,
    suite: Suite,
    chosen: list[str],
    manifest: Manifest,
    folds: list[int],
    digests: dict[str, str],
    how: tuple[Toolbox, int],
    skipped: dict[str, str],
) -> dict[str, str]:
    """Train the arms one after another, tables after each; why some could not be."""
    recipes = suite.recipe.member_recipes()
    trained = [arm for arm in chosen if not suite.arms[arm].of]
    looks = [arm for arm in chosen if suite.arms[arm].of]
    failed: dict[str, str] = {}
    order = [*in_order({arm: recipes[arm] for arm in trained}), *looks]
    for number, arm in enumerate(order, 1):
        lost = [one for one in suite.asked(arm) if one in failed and one != suite.arms[arm].against]
        if lost:
            failed[arm] = f"needs the arm {lost[0]!r}, which failed"
            continue
        say(f"Arm {number} of {len(order)}: {arm}")
        try:
            train_arm(folder, suite, arm, recipes[arm], manifest, folds, *how)
        except RunFolderError:
            raise
        except ManihotError as error:
            failed[arm] = error.what.splitlines()[0]
            say(f"Arm {arm} failed: {error}")
            continue
        done = folder.record.get("arms", {})
        if done.get(arm) != digests[arm]:
            folder.update_record(arms={**done, arm: digests[arm]})
            write_results(folder, suite, digests, {**skipped, **failed}, failed)
    return failed


def train_arm(
    folder: RunFolder,
    suite: Suite,
    arm: str,
    recipe: Recipe,
    manifest: Manifest,
    folds: list[int],
    tools: Toolbox,
    workers: int,
) -> None:
    """One arm on every fold, each a stage that is done once; an arm with `of` only looks again."""
    folds_alone = recipe.model_copy(update={"refit": False})
    member = make_member(folder, arm, folds_alone, manifest, tools, workers)
    if suite.arms[arm].of:
        look_again(member, suite.arms[arm].of, folds)
        return
    for fold in folds:
        train_fold(member, fold)
    collect(member, folds)


def folds_of(manifest: Manifest, recipe: Recipe) -> list[int]:
    """Numbers of the folds that are trained; DataError where no photograph is held out, as nothing could be judged."""
    held = np.unique(manifest.fold[(manifest.fold >= 0) & (manifest.labels >= 0)])
    folds = [int(k) for k in held if not recipe.folds.only or k in recipe.folds.only]
    if not folds:
        raise DataError("no labelled photograph is held out, so no arm could be judged", "set folds.kind=stratified")
    return folds


def _needs_all_folds(suite: Suite, arm: str, manifest: Manifest, folds: list[int]) -> bool:
    """Whether the arm learns from other arms' out-of-fold answers, and not every photograph has one."""
    labels = suite.recipe.members[arm].get("labels") or {}
    held = set(manifest.fold[(manifest.fold >= 0) & (manifest.labels >= 0)].tolist())
    return bool(labels.get("of")) and (len(folds) < 2 or held != set(folds))


def arm_digest(suite: Suite, arm: str, folder: RunFolder) -> str:
    """What decides an arm's predictions, so that those made with other settings are never compared."""
    recipe = suite.recipe.member_recipes()[arm].resolved()
    asked = [arm_digest(suite, one, folder) for one in suite.asked(arm) if one != suite.arms[arm].against]
    apart = ("name", "description", "source", "blend", "refit")  # nothing is refitted: only out-of-fold answers count
    about = {key: value for key, value in recipe.items() if key not in apart}
    return digest_value([about, asked, suite.arms[arm].of, digest_file(folder.folds)])


# ------------------------------------------------------------------------------------------------- comparison


def write_results(
    folder: RunFolder, suite: Suite, digests: dict[str, str], why: dict[str, str], failed: dict[str, str]
) -> pd.DataFrame:
    """Compare all arms whose predictions are there; suite.csv, suite.json, suite.png and suite.html in the folder.

    why: of arms that were not trained.
    """
    made = folder.record.get("arms", {})
    done = [arm for arm in suite.arms if made.get(arm) == digests[arm] and _path(folder, arm).is_file()]
    predictions = {arm: Predictions.load(_path(folder, arm)) for arm in done}
    manifest = Manifest.load(folder.folds)
    pairs = [(arm, suite.arms[arm].against) for arm in done if arm != BASELINE and suite.arms[arm].against in done]
    ids = next(iter(predictions.values())).image_id if predictions else np.empty(0, dtype=object)
    for arm, found in predictions.items():
        if found.image_id.tolist() != ids.tolist():
            raise DataError(f"{_path(folder, arm)}: predicts other photographs than {done[0]}", "remove it, run again")
    groups = manifest.table.set_index("image_id")["group"].reindex(ids).fillna("").to_numpy()
    effects: dict[tuple[str, str], Effect] = {}
    for by_chance in (False, True):  # apart: what differs by chance alone is no claim to be corrected for
        some = [pair for pair in pairs if suite.arms[pair[0]].chance == by_chance]
        effects |= zip(some, compare_pairs(predictions, some, groups, seed=suite.recipe.seed), strict=True)
    rows = []
    for arm, about in suite.arms.items():
        row: dict[str, Any] = {
            "arm": arm,
            "table": about.table,
            "against": "" if arm == BASELINE else about.against,
            "change": in_words(about.set, second=about.second),
            "verdict": about.verdict,
            "reported": about.reported,
            "said": about.said,
            "chance": about.chance,
            "status": "done" if arm in done else "not run",
            "why": "" if arm in done else why.get(arm, "not yet"),
            "judgement": "",
        }
        if arm in failed:
            row |= {"status": "failed", "why": failed[arm]}
        if arm in done:
            known = predictions[arm].labels >= 0
            right = predictions[arm].pred_probs[known].argmax(1) == predictions[arm].labels[known]
            row |= {"photographs": int(known.sum()), "accuracy": float(right.mean())}
        if effect := effects.get((arm, about.against)):
            facts = asdict(effect)
            row |= {key: facts[key] for key in ("accuracy_against", "difference", "low", "high", "p", "holm")}
            row |= {"log_loss_difference": effect.log_loss, "log_loss_low": effect.log_loss_low}
            row |= {"log_loss_high": effect.log_loss_high, "judgement": judge(about.verdict, effect, suite.margin)}
        rows.append(row)
    table = _beyond_chance(pd.DataFrame(rows).reindex(columns=COLUMNS))
    _save(folder, suite, table, [effects[pair].units for pair in pairs][:1])
    return table


def _path(folder: RunFolder, arm: str) -> Path:
    return folder.oof(arm)


def _beyond_chance(table: pd.DataFrame) -> pd.DataFrame:
    """Whether a difference is larger than that of every arm that differs by chance alone; None without such arms."""
    by_chance = table.loc[table["chance"].astype(bool), "difference"].astype(float).abs()
    known = table["difference"].notna() & ~table["chance"].astype(bool)
    beyond = pd.Series([None] * len(table), dtype=object)
    if by_chance.notna().any():
        beyond[known] = (table.loc[known, "difference"].astype(float).abs() > by_chance.max()).tolist()
    return table.assign(beyond_chance=beyond)


def _save(folder: RunFolder, suite: Suite, table: pd.DataFrame, units: list[int]) -> None:
    save_csv(table, folder / "suite.csv")
    plain = json.loads(table.to_json(orient="records"))
    recipe = suite.recipe.resolved()
    save_json(
        folder / "suite.json",
        {
            "name": suite.name,
            "description": suite.description,
            "source": suite.source,
            "level": LEVEL,
            "margin": suite.margin,
            "units": units[0] if units else None,
            "summary": summary(table),
            "base": {key: recipe[key] for key in ("photo", "model", "train", "folds", "seed", "method")},
            "photos": folder.record.get("photos", []),
            "device": folder.record.get("device", ""),
            "arms": plain,
        },
    )
    from manihot.report.suite_page import make_suite_page

    make_suite_page(folder.path)


def summary(table: pd.DataFrame) -> list[str]:
    """What came out, in sentences."""
    claims = table[~table["chance"].astype(bool)]
    judged = claims[claims["judgement"].isin([AGREES, CONTRADICTS, CANNOT_TELL])]
    compared = claims[claims["p"].notna()]
    if not len(compared):
        return ["No arm has been compared yet."]
    counts = judged["judgement"].value_counts()
    said = [
        f"Of {len(judged)} verdicts these photographs agree with {counts.get(AGREES, 0)}, contradict "
        f"{counts.get(CONTRADICTS, 0)}, and cannot tell of {counts.get(CANNOT_TELL, 0)}."
    ]
    stand = compared[compared["holm"].astype(float) <= 1 - LEVEL]
    chance = len(compared) * (1 - LEVEL)
    said.append(
        f"{len(compared)} arms were compared, each at {LEVEL:.0%}: without any effect about {chance:.1f} would seem to "
        f"differ. Holm's correction for that leaves {len(stand)}"
        + (f": {', '.join(stand['arm'])}." if 0 < len(stand) <= 8 else ".")
    )
    by_chance = table[table["chance"].astype(bool) & table["difference"].notna()]
    if len(by_chance):
        moved = " and ".join(f"{100 * value:+.1f}" for value in by_chance["difference"].astype(float))
        said.append(f"Trained once more with another seed, the same arm moved by {moved} points.")
    return said


def in_words(changes: dict[str, Any], *, second: str = "") -> str:
    """Settings as one short line."""
    said = [f"{key}: {_short(value)}" for key, value in changes.items()]
    said += [f"second source: {second}"] if second else []
    return "; ".join(said) or "nothing"


def _short(value: Any) -> str:
    if isinstance(value, dict):
        own = [f"{key} {_short(inner)}" for key, inner in value.items() if key != "name"]
        return (
            " ".join([str(value["name"]), *(["(" + ", ".join(own) + ")"] if own else [])])
            if "name" in value
            else (", ".join(own))
        )
    if isinstance(value, (list, tuple)):
        return (
            ("[" + ", ".join(map(_short, value)) + "]")
            if value and not isinstance(value[0], dict)
            else (" + ".join(map(_short, value)) or "none")
        )
    return str(value)

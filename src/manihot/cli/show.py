"""What a verb returned, on standard output: one function per record."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from manihot.cli.output import show, show_table
from manihot.progress import SafeConsole, cell
from manihot.records.run_parts import BlendFolder
from manihot.settings import Recipe
from manihot.verbs import results as r

if TYPE_CHECKING:
    from manihot.review.agreement import Agreement

SHOWN_SUBSETS = 5  # of the 50 that are ranked


def show_result(found: Any) -> None:
    """Show a verb's record."""
    SHOWN[type(found)](found)


def _scan(found: r.ScanResult) -> None:
    show(f"Manifest: {found.path} ({len(found.manifest)} photographs, {len(found.quarantine)} in quarantine)")


def _demo(found: r.DemoResult) -> None:
    show(f"Demo photographs: {found.folder}   next: manihot run {found.folder} --out runs/demo")


def _audit(found: r.AuditResult) -> None:
    if found.scores is not None:
        _run(found.scores)
    if found.label_issues is not None:
        show(f"{found.label_issues} of {found.judged} labels look wrong")
    show(f"Audit: {found.page}")


def _clean(found: r.CleanResult) -> None:
    from manihot.report.clean_page import counts_grid

    show_table(counts_grid(found.counts))
    show(
        f"Page: {found.page}",
        f"Decisions: {found.decisions}   next: manihot run {found.manifest} --out {found.manifest.parent / 'run'}",
    )


def _review(found: r.ReviewResult) -> None:
    if found.decisions is None:
        if found.page is not None:
            show(
                f"{found.photographs} photographs, about {found.expected or 0:.0f} wrong labels expected among them",
                f"Page: {found.page}   open it in a browser; no server is needed",
            )
        return
    if found.alpha is not None:
        show(f"Krippendorff's alpha: {_agreement(found.alpha)}, on {found.photographs} photographs with two answers")
    show(*(f"Cohen's kappa of {a} and {b}: {_agreement(one)}" for a, b, one in found.pairs))
    show(f"{found.decided} decided, {found.disagreed} disagreed on. Decisions: {found.decisions}")
    if found.page is not None:
        show(f"Page of the disagreements: {found.page}")


def _agreement(one: Agreement) -> str:
    if one.value is None:
        return "not defined, as only one answer was given"
    band = "" if one.low is None else f" ({one.low:.3f} to {one.high:.3f})"
    return f"{one.value:.3f}{band}"


def _watch(found: r.WatchResult) -> None:
    show(f"{found.report.sentence()} Page: {found.page}")


def _run(found: r.RunScores) -> None:
    if found.smoke:
        show("It runs. The figures are of a smoke run: they say nothing about the recipe or the photographs.")
        return
    from manihot.verbs.models import compare

    _leaderboard(compare(found.out))
    show(f"Report: {found.report}")


def _jobs(found: r.JobList) -> None:
    show(*(f"{name} {state}" for name, state in found.jobs.items()))


def _predict(found: r.PredictResult) -> None:
    from manihot.infer.outputs import scores_in_words

    if scores := scores_in_words(found.predictions):
        show(scores)
    show(f"{len(found.predictions)} photographs predicted: {found.path}")


def _leaderboard(found: r.Leaderboard) -> None:
    from manihot.report.compare import print_leaderboard

    print_leaderboard(found.table, SafeConsole(highlight=False))


def _note(found: r.NoteResult) -> None:
    scores = [f"{name} {value:.6g}" for name in ("public", "private") if (value := getattr(found, name)) is not None]
    show(", ".join([*scores, *([found.text] if found.text else [])]) or "Nothing is noted.")


def _shares(found: r.SharesResult) -> None:
    if found.shares is not None:
        table = Table(*found.shares.columns, box=None)
        for row in found.shares.to_dict("records"):
            table.add_row(*(cell(f"{v:.4f}" if isinstance(v, float) else str(v)) for v in row.values()))
        show_table(table)
    show(*(f"Written: {file}" for file in found.files))


def _page(found: r.PageResult) -> None:
    show(f"Page: {found.page}")


def _share(found: r.ShareResult) -> None:
    networks = sum(name.endswith((".safetensors", ".onnx")) for name in found.files)
    show(f"{len(found.files)} files, {networks} networks among them, {found.size / 1e6:.1f} MB: {found.path}")


def _export(found: r.ExportResult) -> None:
    same = found.certificate["calibrated"]
    show(
        f"{same['equal_decisions']:.1%} equal decisions on {found.certificate['photographs']} photographs of the run, "
        f"probabilities differ by at most {same['largest_difference']:.1g}"
    )
    for file in (*found.files, *([found.page] if found.page is not None else [])):
        show(f"{file}: {file.stat().st_size / 1e6:.1f} MB")
    if found.app is not None:
        size = sum(file.stat().st_size for file in found.app.rglob("*") if file.is_file())
        show(f"{found.app}: {size / 1e6:.1f} MB")


def _serve(found: r.ServeResult) -> None:
    show(f"{found.photographs} photographs classified in {found.seconds:.0f} s")


def _lr_find(found: r.LrFindResult) -> None:
    show(f"Suggested: optimizer.lr={found.suggestion:.1e} (picture: {found.picture})")


def _translate(found: r.TranslateResult) -> None:
    show(
        f"{found.pictures} pictures: {found.manifest}; with the photographs: {found.joined}",
        f"Samples: {found.samples}",
    )


def _blend(found: r.BlendResult) -> None:
    record, out = found.record, found.out
    if record.gain is not None and record.accuracy is not None and record.plain_accuracy is not None:
        verdict = "a gain over plain averaging" if record.gain else "no gain over plain averaging beyond chance"
        show(f"Stack: {record.accuracy:.2%}, plain average {record.plain_accuracy:.2%}: {verdict}; written to {out}")
        return
    if found.cheaper is not None:
        show(f"Blends that nothing beats in accuracy, seconds and bytes: {found.cheaper}, in {out / 'pareto.csv'}")
    weights = ", ".join(f"{name} {weight:.3g}" for name, weight in (record.weights or {}).items())
    if record.subsets:
        show("Subsets that are right most often, on the photographs they are chosen by (50 in subsets.csv):")
    for rank, one in enumerate((record.subsets or [])[:SHOWN_SUBSETS], 1):
        show(f"  {rank}. {one.accuracy:.2%} {' + '.join(one.members)}")
    show(f"Blend: {record.method}{f' ({weights})' if weights else ''}, written to {BlendFolder(out).summary}")


def _calibrate(found: r.CalibrateResult) -> None:
    show(
        f"Calibration: {found.kind}, expected calibration error {found.ece_before:.2%} before, {found.ece_after:.2%} "
        f"after, held out on {found.photographs} photographs",
        f"Calibration and prediction sets: {found.path}",
    )


def _decide(found: r.DecideResult) -> None:
    show(
        f"{found.photographs} photographs: {found.asked:.1%} for an expert, {found.changed:.1%} answered otherwise "
        "than the most probable class",
        f"Decisions: {found.decisions}",
    )


def _check(found: r.SubmissionCheck) -> None:
    show(*(f"{found.file}: {one}" for one in found.differences or (f"as {found.sample} has it",)))


def _recipes(found: r.RecipesResult) -> None:
    families = sorted({one.name.partition("-")[0] for one in found.recipes if one.source})
    own = [one for one in found.recipes if not one.source]
    of_family = [
        (family, [one for one in found.recipes if one.source and one.name.partition("-")[0] == family])
        for family in families
    ]
    for title, recipes in [("manihot's own", own), *of_family]:
        table = Table("recipe", "what it is", "reported", box=None, title=title, title_justify="left")
        for one in recipes:
            table.add_row(one.name, cell(one.description), cell(one.source.partition("; ")[2]), end_section=True)
        show_table(table)
        show("")
    show("Scores of the systems are those that their authors reported, on their own photographs.")


def _recipe(found: Recipe) -> None:
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = None
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(found.resolved(), sys.stdout)


def _suite(found: r.SuiteResult) -> None:
    if found.table is None or found.page is None:
        show_table(_arms(found))
        return
    from manihot.suites.run import summary

    show_table(_arm_results(found))
    show(*summary(found.table), f"Page: {found.page}  picture: {found.page.with_suffix('.png')}")


def _arms(found: r.SuiteResult) -> Table:
    """A suite's arms and what was reported of each."""
    grid = Table("arm", "reported", "in the report's words", box=None, pad_edge=False)
    grid.columns[0].no_wrap = grid.columns[1].no_wrap = True
    heading = ""
    for name, arm in found.arms.items():
        if arm.table != heading:
            heading = arm.table
            grid.add_row(Text(heading, style="bold"))
        told = arm.verdict + ("" if arm.reported is None else f" {100 * arm.reported:+.1f}")
        said = arm.said + (f" (against {arm.against})" if arm.against != "baseline" else "")
        said += f" (needs {arm.needs})" if arm.needs else " (needs a second source)" if arm.second else ""
        grid.add_row(*(cell(text) for text in (name, "" if name == "baseline" else told, said)))
    return grid


def _arm_results(found: r.SuiteResult) -> Table:
    """What the arms did; a star where Holm's correction leaves the difference."""
    grid = Table("arm", "reported", "points", "interval", "here", box=None, pad_edge=False)
    grid.columns[0].no_wrap = grid.columns[2].no_wrap = True
    table = found.table
    rows = [] if table is None else table.astype(object).where(table.notna(), None).to_dict("records")
    for row in rows:
        told = row["verdict"] + ("" if row["reported"] is None else f" {100 * row['reported']:+.1f}")
        if row["difference"] is not None:
            star = "*" if row["holm"] <= 0.05 and not row["chance"] else ""
            points = f"{100 * row['difference']:+.1f}{star}"
            cells = (told, points, f"{100 * row['low']:+.1f} to {100 * row['high']:+.1f}", row["judgement"] or "–")
        elif row["status"] == "done" or row["why"] == "not asked for":
            continue
        else:
            cells = (told, "", "", f"{row['status']}: {row['why']}")
        grid.add_row(*(cell(text) for text in (row["arm"], *cells)))
    return grid


SHOWN: dict[type, Callable[[Any], None]] = {
    r.ScanResult: _scan,
    r.DemoResult: _demo,
    r.AuditResult: _audit,
    r.CleanResult: _clean,
    r.ReviewResult: _review,
    r.WatchResult: _watch,
    r.RunScores: _run,
    r.JobList: _jobs,
    r.PredictResult: _predict,
    r.Leaderboard: _leaderboard,
    r.NoteResult: _note,
    r.SharesResult: _shares,
    r.PageResult: _page,
    r.ShareResult: _share,
    r.ExportResult: _export,
    r.ServeResult: _serve,
    r.LrFindResult: _lr_find,
    r.TranslateResult: _translate,
    r.BlendResult: _blend,
    r.CalibrateResult: _calibrate,
    r.DecideResult: _decide,
    r.SubmissionCheck: _check,
    r.RecipesResult: _recipes,
    Recipe: _recipe,
    r.SuiteResult: _suite,
}

"""The verb that reviews labels: a page, a merge of several people's decisions, or a server for a team."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from manihot.errors import SettingsError
from manihot.extras import need_serve
from manihot.progress import say
from manihot.records.run_places import RunPlaces
from manihot.settings.options import ALONE, HERE, Compute, ReviewTeam
from manihot.verbs.options import FILE, FILES, On, Place
from manihot.verbs.places import PathLike, as_path, as_paths
from manihot.verbs.results import ReviewResult

Merged = Annotated[
    PathLike | Sequence[PathLike],
    FILES,
    Parameter(help="Files of decisions of several people: how far they agree, and a page of their disagreements."),
]
TeamOf = Annotated[ReviewTeam, Parameter(name="*")]


def review(
    run: Annotated[Place | None, Parameter(help="An audited run folder.")] = None,
    *,
    out: Annotated[
        PathLike | None,
        FILE,
        Parameter(name=["--out", "-o"], help="The page, RUN/review.html; with --merge a folder, RUN/review."),
    ] = None,
    merge: Merged = (),
    serve: Annotated[bool, Parameter(help="Run the page on a server, for several people.")] = False,
    n: Annotated[int | None, Parameter(help="So many photographs; by default as many as are worth reviewing.")] = None,
    show_suggestion: Annotated[bool, Parameter(help="Show the model's suggestion before the first answer.")] = False,
    unsure: Annotated[
        str, Parameter(help="What to do with a photograph whose class nobody can tell: keep, drop or down_weight.")
    ] = "keep",
    team: TeamOf = ALONE,
    compute: On = HERE,
) -> ReviewResult:
    """Correct labels with the keyboard: one offline page, those first whose label is most probably wrong.

    The page saves decisions.csv, which `manihot clean --decisions` takes. --merge compares several people's files;
    --serve runs the page for a team and keeps the answers in a database. Photographs and labels are never changed.
    """
    files = as_paths(merge)
    _check(run, out, files, serve, team)
    if files:
        return _merge(as_path(run), as_path(out), files, unsure, compute)
    assert run is not None
    if serve:
        return _serve(Path(run), n, show_suggestion, unsure, team)
    from manihot.review.page import make_review_page
    from manihot.review.ranking import unseen

    page, queue = make_review_page(
        Path(run), as_path(out), n=n, show_suggestion=show_suggestion, unsure=unsure, workers=compute.workers
    )
    return ReviewResult(page=page, photographs=len(queue.table), expected=unseen(queue.table["chance"].to_numpy()))


def _check(run: PathLike | None, out: PathLike | None, files: Sequence[Path], serve: bool, team: ReviewTeam) -> None:
    """SettingsError for options that nothing would follow."""
    if run is None and not files:
        raise SettingsError("nothing to review", "name an audited run: manihot review RUN")
    if files and serve:
        raise SettingsError("--merge and --serve do different things", "leave one of them out")
    if not serve and team.named():
        raise SettingsError(f"{team.named()}: nothing is served", "add --serve, or leave it out")
    if serve and out is not None:
        raise SettingsError("--out: a server writes no page", "leave it out, or leave --serve out")


def _merge(run: Path | None, out: Path | None, files: Sequence[Path], unsure: str, compute: Compute) -> ReviewResult:
    from manihot.review.merge import merge

    found, decisions, page = merge(files, run, out, unsure=unsure, workers=compute.workers)
    return ReviewResult(
        page=page,
        photographs=found.photographs,
        decisions=decisions,
        decided=len(found.decided),
        disagreed=len(found.disagreed),
        alpha=found.alpha,
        pairs=found.pairs,
    )


def _serve(run: Path, n: int | None, show_suggestion: bool, unsure: str, team: ReviewTeam) -> ReviewResult:
    need_serve("a review by a team", "sqlalchemy")
    from manihot.records.manifest import Manifest
    from manihot.review.answers import check_unsure
    from manihot.review.database import Database, sqlite_url
    from manihot.review.page import review_digest
    from manihot.review.ranking import make_queue, unseen
    from manihot.review.server import serve
    from manihot.review.team import Team, invite

    check_unsure(unsure)
    places = RunPlaces(run)
    queue, manifest = make_queue(run, n), Manifest.load(places.manifest)
    database = Database(team.database or sqlite_url(places.review.database), review_digest(manifest))
    work = Team(run, manifest, queue, database, team.reviewers_per_photo, show_suggestion, unsure)
    address = f"http://{f'[{team.host}]' if ':' in team.host else team.host}:{team.port}"
    for name, token in invite(database, team).items():
        say(f"{name}: {address}/join/{token}")
    say(f"Reviewing at {address}; links given out before stay valid. Stop with Ctrl-C: answers are kept.")
    try:
        serve(work, team.host, team.port)
    finally:
        database.close()
    return ReviewResult(page=None, photographs=len(queue.table), expected=unseen(queue.table["chance"].to_numpy()))

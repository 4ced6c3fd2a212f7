"""The folds of a run as independent jobs: named, listed, and computed one by one, on any machine that sees the folder.

A job computes what the run itself would have computed, from RUN/run.json and RUN/folds.parquet alone. The run finds it
done, as it finds a stage that it did before it was stopped.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from manihot.engines import make_toolbox
from manihot.errors import RunFolderError, SettingsError
from manihot.extras import need_train
from manihot.members.crossval import collect, folds_of, in_order, train_fold
from manihot.members.member import Member, make_member
from manihot.members.toolbox import Toolbox
from manihot.members.training_labels import members_asked
from manihot.pipeline.job import prepare
from manihot.pipeline.opening import check_settings, resolve
from manihot.records.files import is_held
from manihot.records.manifest import Manifest
from manihot.records.run_folder import REFITTED, WHOLE, JobFolder, RunFolder
from manihot.settings import Recipe, suggest
from manihot.settings.options import EVERYTHING_GUESSED, HERE, Compute, TableOptions


@dataclass(frozen=True)
class Job:
    """The training of one member on one fold. after: the jobs that must be done before it."""

    member: str
    fold: int
    after: tuple[Job, ...] = ()

    @property
    def name(self) -> str:
        """As the command line names it: main/0, main/refit."""
        return f"{self.member}/{REFITTED if self.fold == WHOLE else self.fold}"


@dataclass(frozen=True)
class Opened:
    """A run that is ready for its jobs."""

    folder: RunFolder
    recipe: Recipe
    manifest: Manifest

    @property
    def jobs(self) -> list[Job]:
        """All jobs, each behind those that it waits for."""
        recipes = self.recipe.member_recipes()
        found: dict[str, list[Job]] = {}
        for name in in_order(recipes):
            asked = [job for other in members_asked(recipes[name]) for job in found[other]]
            folds = [Job(name, fold, tuple(asked)) for fold in folds_of(recipes[name], self.manifest) if fold != WHOLE]
            whole = [Job(name, WHOLE, tuple(folds))] if WHOLE in folds_of(recipes[name], self.manifest) else []
            found[name] = [*folds, *whole]
        return [job for jobs in found.values() for job in jobs]

    def find(self, name: str) -> Job:
        """The job of this name; SettingsError where there is none."""
        known = {job.name: job for job in self.jobs}
        if name not in known:
            raise SettingsError(f"{self.folder.path}: there is no job {name!r}", suggest(name, list(known)))
        return known[name]

    def state(self, job: Job) -> str:
        """'done', 'running', or 'waiting'; a job that was done counts until the run finds that its inputs changed."""
        place = self.folder.fold(job.member, job.fold).path
        if is_held(place):
            return "running"
        return "done" if self.folder.is_noted(self.folder.relative(place)) else "waiting"


def open_jobs(run: Path) -> Opened:
    """The jobs of a prepared run; RunFolderError where it is not prepared."""
    with JobFolder(Path(run)) as folder:
        if not folder.is_noted("folds") or not folder.folds.is_file():
            raise RunFolderError(f"{run}: its photographs are not scanned and divided into folds yet", PREPARE)
        recipe = Recipe.model_validate(folder.record["recipe"])
        return Opened(folder, recipe, Manifest.load(folder.folds))


def prepare_jobs(
    photos: Path | Sequence[Path],
    out: Path,
    recipe: str | Recipe | None = None,
    *,
    overrides: Sequence[str] = (),
    compute: Compute = HERE,
    update: bool = False,
    columns: TableOptions = EVERYTHING_GUESSED,
) -> Opened:
    """Everything of `manihot.pipeline.run` before training; the jobs that are left then."""
    resolved = resolve(recipe, overrides, compute.device)
    with RunFolder(Path(out)) as folder:
        manifest = prepare(folder, resolved, photos, columns, compute.workers, update)
        check_settings(resolved, manifest.classes)
    return open_jobs(Path(out))


def train_job(run: Path, name: str, compute: Compute = HERE) -> bool:
    """Compute one job of a prepared run, unless it is done; whether it was due.

    By all processes that torchrun started, where it did. Raises ManihotError; the same call continues a stopped job.
    """
    opened = open_jobs(run)
    job = opened.find(name)
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return train_fold(_member(opened, job, make_toolbox(opened.recipe, compute.device), compute.workers), job.fold)
    if opened.recipe.member_recipes()[job.member].method == "features":
        raise SettingsError(
            f"{name}: heads on frozen features are fitted by one process", "start the job without torchrun"
        )
    need_train("training by several processes")
    from manihot.train.distributed import from_first, processes, rank
    from manihot.train.toolbox import torch_toolbox

    with processes(compute.device) as place:
        member = _member(opened, job, torch_toolbox(place), compute.workers)
        if not rank():
            return train_fold(member, job.fold, lambda due: from_first(lambda: due))
        due = from_first(lambda: True)  # the first process's answer
        if due:
            member.tools.methods[member.recipe.method].fit(member, job.fold, *member.rows(job.fold))
        return due


def _member(opened: Opened, job: Job, tools: Toolbox, workers: int) -> Member:
    """The job's member, once all that it waits for is done; RunFolderError where something isn't."""
    missing = [other.name for other in job.after if opened.state(other) != "done"]
    if missing:
        raise RunFolderError(
            f"{job.name} waits for {', '.join(missing)}", "train these first; `manihot train RUN` shows what is done"
        )
    recipes = opened.recipe.member_recipes()
    for name in dict.fromkeys(other.member for other in job.after if other.member != job.member):
        asked = make_member(opened.folder, name, recipes[name], opened.manifest, tools, workers)
        collect(asked, asked.folds)
    return make_member(opened.folder, job.member, recipes[job.member], opened.manifest, tools, workers)


PREPARE = "run `manihot prepare PHOTOS --out RUN` first, with the recipe's options"

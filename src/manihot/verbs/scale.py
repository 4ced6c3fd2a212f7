"""Verbs for runs whose folds are computed one by one, on several GPUs or machines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from manihot.settings.options import EVERYTHING_GUESSED, HERE
from manihot.verbs.options import Columns, On, Out, Photos, RecipeName, Run, Sets, Update
from manihot.verbs.places import as_choice, as_source
from manihot.verbs.results import JobList


def prepare(
    photos: Photos,
    *,
    out: Out,
    recipe: RecipeName = None,
    set: Sets = (),
    columns: Columns = EVERYTHING_GUESSED,
    compute: On = HERE,
    update: Update = False,
) -> JobList:
    """Do the part of `run` before training, and list the remaining jobs: one per member and fold.

    It scans, finds duplicates and makes folds. Compute each job with `manihot train OUT --job NAME`, on any machine
    that can read the folder and the photographs; then finish with `manihot run` and the same options.
    """
    from manihot.pipeline.jobs import prepare_jobs

    opened = prepare_jobs(
        as_source(photos),
        Path(out),
        as_choice(recipe, set),
        overrides=set,
        compute=compute,
        update=update,
        columns=columns,
    )
    return JobList(out=Path(out), jobs={job.name: opened.state(job) for job in opened.jobs})


def train(
    run: Run,
    *,
    job: Annotated[str, Parameter(help="MEMBER/FOLD, such as main/0 or main/refit.")] = "",
    compute: On = HERE,
) -> JobList:
    """Compute one job of a prepared run, exactly as `run` itself would; without --job, list the jobs and their state.

    Jobs may run in parallel, on any machines that can read the run folder; a finished job is not repeated, a stopped
    one resumes. torchrun --nproc-per-node 4 -m manihot train RUN --job main/0 trains one fold on 4 GPUs; each
    process then sees `train.batch` photographs per step.
    """
    from manihot.pipeline.jobs import open_jobs, train_job

    if job:
        train_job(Path(run), job, compute)
    opened = open_jobs(Path(run))
    wanted = [opened.find(job)] if job else opened.jobs
    return JobList(out=Path(run), jobs={one.name: opened.state(one) for one in wanted})

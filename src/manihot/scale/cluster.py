"""The jobs of a run on a Ray cluster, or on a Ray that lives on this machine for as long as they take.

One job per GPU, or per as many cores as the recipe's loader processes and the one that trains. Ray Core (arXiv
1712.05889) finds the room and starts a job again whose worker or machine was lost; the job itself, its locks and its
checkpoints are those of `manihot train RUN --job NAME`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from manihot.errors import ManihotError, MissingExtraError, SettingsError
from manihot.pipeline.jobs import Job, Opened, prepare_jobs, train_job
from manihot.progress import say, speak, warn
from manihot.records.run_folder import RunFolder
from manihot.settings import Recipe
from manihot.settings.options import EVERYTHING_GUESSED, HERE, Compute, TableOptions

LOCAL = "local"
RETRIES = 3  # of a job whose worker or machine was lost
LAST_WORDS = 1.0  # seconds in which Ray passes on what workers said at the end
OBJECTS = 100_000_000  # bytes of memory for what Ray passes around on this machine: names of jobs
AGAIN = "run again to resume: what is done is kept"


def compute_folds(
    photos: Path | Sequence[Path],
    out: Path,
    recipe: str | Recipe | None,
    address: str,
    *,
    overrides: Sequence[str] = (),
    compute: Compute = HERE,
    update: bool = False,
    columns: TableOptions = EVERYTHING_GUESSED,
) -> None:
    """The part of `manihot.pipeline.run` up to the trained folds, by a Ray cluster; `run` finds them done.

    address: as for `compute_jobs`; the other arguments as for `manihot.pipeline.jobs.prepare_jobs`.
    """
    need_ray()
    opened = prepare_jobs(photos, out, recipe, overrides=overrides, compute=compute, update=update, columns=columns)
    with RunFolder(Path(out)):  # a second driver is refused
        compute_jobs(opened, address, compute)


def need_ray() -> None:
    """MissingExtraError where the extra `ray` isn't installed."""
    if find_spec("ray") is None:
        raise MissingExtraError("--ray", extra="ray")


def compute_jobs(opened: Opened, address: str, compute: Compute) -> None:
    """Compute all jobs of a prepared run; each is left alone where it is done.

    address: of a Ray cluster whose machines see the run folder and the photographs under their paths here, or 'local'.
    When a job fails, those that run are finished, and no others begin; then its error is raised.
    """
    ray: Any = import_module("ray")

    with _connected(ray, address):
        gpus = 0 if compute.device == "cpu" else min(1, int(ray.cluster_resources().get("GPU", 0)))
        waiting, running, done = list(opened.jobs), dict[Any, Job](), set[str]()
        count, failed = len(waiting), None
        say(f"Ray: {count} jobs on {_describe(ray)}")
        while running or (waiting and failed is None):
            for job in [job for job in waiting if failed is None and all(other.name in done for other in job.after)]:
                waiting.remove(job)
                running[_submit(ray, opened, job, compute, gpus)] = job
            [ready], _ = ray.wait(list(running))
            job = running.pop(ready)
            try:
                say(f"{job.name}: {ray.get(ready)} ({len(done) + 1} of {count} jobs)")
                done.add(job.name)
            except ray.exceptions.RayError as error:
                found = _explain(ray, job, error)
                warn(f"{job.name} failed: {found.what}")
                failed = failed or found
        if failed is not None:
            raise failed


@contextmanager
def _connected(ray: Any, address: str) -> Iterator[None]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to anyone
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # jobs that print the same are distinguished by their names
    own: dict[str, Any] = {"include_dashboard": False, "object_store_memory": OBJECTS}
    where = own if address == LOCAL else {"address": address}
    try:
        ray.init(**where, logging_level="warning", log_to_driver=True)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise SettingsError(
            f"--ray {address}: no Ray answers ({str(error).splitlines()[0]})",
            "give the address that `ray start --head` shows, such as 10.0.0.1:6379, or local",
        ) from error
    try:
        yield
    finally:
        time.sleep(LAST_WORDS)
        ray.shutdown()


def _describe(ray: Any) -> str:
    found, nodes = ray.cluster_resources(), [node for node in ray.nodes() if node["Alive"]]
    return f"{len(nodes)} machines, {found.get('CPU', 0):.0f} cores, {found.get('GPU', 0):.0f} GPUs"


def cores_of(opened: Opened, job: Job) -> int:
    """How many cores a job takes: the recipe's loader processes, and the one that trains."""
    recipe = opened.recipe.member_recipes()[job.member]
    return 1 + (recipe.train.workers if recipe.method != "features" else 0)


def _submit(ray: Any, opened: Opened, job: Job, compute: Compute, gpus: int) -> Any:
    """The job's future result. It is queued where there is no room now."""
    most = max(int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"])
    task = ray.remote(_compute).options(
        name=job.name,
        num_cpus=min(cores_of(opened, job), max(1, most)),
        num_gpus=gpus,
        max_retries=RETRIES,
        retry_exceptions=False,
    )
    return task.remote(str(opened.folder.path.resolve()), job.name, compute)


def _compute(run: str, name: str, compute: Compute) -> str:
    """A job in a worker of Ray; what to say of it."""
    speak()
    clock = time.perf_counter()
    due = train_job(Path(run), name, compute)
    return f"done in {time.perf_counter() - clock:.1f} s on {os.uname().nodename}" if due else "done before"


def _explain(ray: Any, job: Job, error: Exception) -> ManihotError:
    """What a person can do about it."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, ManihotError):
        return cause
    lost = (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError)
    if isinstance(error, lost):
        return ManihotError(f"{job.name}: its worker was lost {RETRIES + 1} times ({_line(error)})", AGAIN)
    return ManihotError(f"{job.name}: {_line(cause or error)}", f"try `manihot train RUN --job {job.name}`; {AGAIN}")


def _line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__

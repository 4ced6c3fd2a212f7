"""The command line: every verb of the Python API, with its own names, options and defaults."""

from __future__ import annotations

import errno
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from cyclopts import App, Parameter

import manihot
from manihot.cli.output import OutputError, watched
from manihot.errors import EXIT_INTERRUPTED, EXIT_PIPE, EXIT_TERMINATED, DiskFullError, ManihotError
from manihot.progress import SafeConsole, console, say, speak
from manihot.verbs import losses, models, notes, photos, predictions, priors, scale
from manihot.verbs import recipes as recipe_verbs
from manihot.verbs import review as review_verbs
from manihot.verbs import serve as serve_verbs
from manihot.verbs.results import SubmissionCheck, WatchResult

VERBS: tuple[Callable[..., Any], ...] = (
    photos.scan,
    photos.demo_data,
    models.run,
    scale.prepare,
    scale.train,
    photos.audit,
    photos.clean,
    review_verbs.review,
    models.predict,
    models.explain,
    photos.watch,
    models.compare,
    notes.note,
    models.report,
    predictions.blend,
    predictions.stack,
    predictions.calibrate,
    predictions.decide,
    priors.probe_prior,
    priors.reweight,
    predictions.check_submission,
    models.share,
    models.show_augment,
    losses.show_losses,
    models.lr_find,
    models.translate,
    models.export,
    serve_verbs.serve,
    recipe_verbs.suite,
)


def _default(value: Any) -> str | None:
    """A default as the help shows it; none for what is empty."""
    if value is None or value is False or value in ("", ()):
        return None
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


app = App(
    name="manihot",
    version=manihot.__version__,
    help="Turn a folder of field photographs with imperfect labels into a trustworthy classifier and a report.",
    help_epilogue="To start:  manihot demo-data demo   then   manihot run demo --out runs/demo",
    suppress_keyboard_interrupt=False,  # `main` answers it, with what to do next
    default_parameter=Parameter(negative=(), consume_multiple=True, show_default=_default),
)
recipes = App(name="recipes", help="List the built-in recipes, or show one.")
recipes.default(recipe_verbs.recipes)
recipes.command(recipe_verbs.show_recipe, name="show")
for verb in VERBS:
    app.command(verb, name=verb.__name__.replace("_", "-"))
app.command(recipes)


class Terminated(BaseException):
    """SIGTERM, raised where the program stands so that files are closed and locks dropped."""


def _terminate(*_: object) -> NoReturn:
    raise Terminated


def main(words: Sequence[str] | None = None) -> None:
    """Run the command line on the process's own arguments, or on `words`; ends the process with its exit code."""
    speak()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        sys.exit(answer(words))
    except ManihotError as error:
        sys.exit(_report(error))
    except OutputError as error:
        sys.exit(_report_output(error.cause))
    except KeyboardInterrupt:
        say("Stopped. Everything finished so far is kept; run it again to resume.")
        sys.exit(EXIT_INTERRUPTED)
    except Terminated:
        say("Terminated. Everything finished so far is kept; run it again to resume.")
        sys.exit(EXIT_TERMINATED)


def answer(words: Sequence[str] | None) -> int:
    """Do what the process's arguments, or `words`, ask for, and show the result; the exit code. Raises ManihotError."""
    with watched():
        found = app(words, console=SafeConsole(), error_console=SafeConsole(stderr=True), result_action="return_value")
        if found is not None:  # help and the version have shown themselves
            from manihot.cli.show import show_result

            show_result(found)
    return found.exit_code if isinstance(found, WatchResult | SubmissionCheck) else 0


def _report_output(error: OSError) -> int:
    """What to say of standard output that can't be written: nothing where a reader such as `head` has enough."""
    if error.errno == errno.EPIPE:
        return EXIT_PIPE
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _report(
            DiskFullError("standard output: no space left on the disk", "free some space, then run it again")
        )
    return _report(ManihotError(f"standard output can't be written ({error.strerror})", "check where it goes"))


def _report(error: ManihotError) -> int:
    """Print the error on standard error; return its exit code."""
    console.print(f"[bold red]{type(error).__name__}[/]:", end=" ")
    console.print(str(error), markup=False)
    return error.exit_code

"""The command line: one verb, one function. Heavy imports stand inside the verb that needs them."""

from __future__ import annotations

import signal
import sys
from typing import NoReturn

from cyclopts import App

import manihot
from manihot.cli import models, photos, predictions, suites
from manihot.cli import recipes as recipe_commands
from manihot.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, ManihotError
from manihot.progress import console, say

app = App(
    name="manihot",
    version=manihot.__version__,
    help="From a folder of field photographs with imperfect labels to a trustworthy classifier and a report.",
    help_epilogue="First steps:  manihot demo-data demo   then   manihot run demo --out runs/demo",
    suppress_keyboard_interrupt=False,  # `main` answers it, with what to do next
)
recipes = App(name="recipes", help="List the recipes that come with the package, or show one.")
recipes.default(recipe_commands.list_recipes)
recipes.command(recipe_commands.show)
for verb in (
    photos.scan, photos.demo_data, models.run, models.train, photos.audit, photos.clean, models.predict, models.explain,
    photos.watch, models.compare, models.report, predictions.blend, predictions.stack, predictions.calibrate,
    predictions.decide, predictions.check_submission, models.share, models.show_augment, models.lr_find,
    models.translate, suites.suite,
):  # fmt: skip
    app.command(verb, name=verb.__name__.replace("_", "-"))
app.command(recipes)


class Terminated(BaseException):
    """SIGTERM, raised where the program stands so that files are closed and locks dropped."""


def _terminate(*_: object) -> NoReturn:
    raise Terminated


def main() -> None:
    """Run the command line; errors become one message and an exit code."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app()
    except ManihotError as error:
        console.print(f"[bold red]{type(error).__name__}[/]:", end=" ")
        console.print(str(error), markup=False)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        say("Stopped. Everything finished so far is kept; the same command continues.")
        sys.exit(EXIT_INTERRUPTED)
    except Terminated:
        say("Terminated. Everything finished so far is kept; the same command continues.")
        sys.exit(EXIT_TERMINATED)

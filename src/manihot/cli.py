"""The command line: one verb, one function. Heavy imports stand inside the verb that needs them."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

from cyclopts import App, Parameter

import manihot
from manihot.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, ManihotError, SettingsError
from manihot.progress import console, say

app = App(
    name="manihot",
    version=manihot.__version__,
    help="From a folder of field photographs with imperfect labels to a trustworthy classifier and a report.",
    help_epilogue="First steps:  manihot demo-data demo   then   manihot run demo --out runs/demo",
    suppress_keyboard_interrupt=False,  # `main` answers it, with what to do next
)
recipes = App(name="recipes", help="List the recipes that come with the package, or show one.")
app.command(recipes)

Out = Annotated[Path, Parameter(name=["--out", "-o"], help="Where to write.")]
Photos = Annotated[list[Path], Parameter(help="Folder(s), a CSV or a manifest.parquet.")]
Table = Annotated[Path | None, Parameter(help="A table of photographs whose paths start at PHOTOS.")]
ImageColumn = Annotated[str | None, Parameter(help="Column with the file, or a pattern such as leaf/{id}.jpg.")]
LabelColumn = Annotated[str | None, Parameter(help="Column with the class.")]
SourceColumn = Annotated[str | None, Parameter(help="Column that says where a photograph comes from.")]
GroupColumn = Annotated[str | None, Parameter(help="Column of what must stay together in a fold (a plant, a leaf).")]
FoldColumn = Annotated[str | None, Parameter(help="Column with your own folds, 0 to K-1.")]
SplitColumn = Annotated[str | None, Parameter(help="Column with train, val or test.")]
ClassMap = Annotated[Path | None, Parameter(help="JSON file that maps label numbers to class names.")]
RecipeName = Annotated[
    str | None, Parameter(name=["--recipe", "-r"], help="A name (see `manihot recipes`) or a .yaml file.")
]
Sets = Annotated[
    list[str] | None,
    Parameter(name=["--set", "-s"], negative="", help="A setting, key=value, e.g. train.epochs=3; may be repeated."),
]
Update = Annotated[bool, Parameter(negative="", help="Redo in OUT what changed settings or photographs change.")]
Device = Annotated[str, Parameter(help="auto, cpu, cuda, mps.")]
Workers = Annotated[int, Parameter(help="Processes that read photographs.")]


def _one_or_many(photos: list[Path]) -> Any:
    return photos[0] if len(photos) == 1 else photos


@app.command
def scan(
    photos: Photos, *, out: Out, csv: Table = None, image: ImageColumn = None, label: LabelColumn = None,
    source: SourceColumn = None, group: GroupColumn = None, fold: FoldColumn = None,
    split: SplitColumn = None, classes: ClassMap = None,
    workers: Workers = 2,
) -> None:  # fmt: skip
    """Read every photograph once and write OUT/manifest.parquet and OUT/quarantine.csv.

    Understands class folders (with or without train/val/test above them), a CSV or parquet table, the Kaggle
    cassava layout, and Hugging Face metadata.csv or metadata.jsonl. Nothing in your folders is changed.
    """
    from manihot.photos.scan import scan as scan_photos

    scan_photos(
        _one_or_many(photos), out=out, csv=csv, image=image, label=label, source=source, group=group, fold=fold,
        split=split, classes=classes, workers=workers,
    )  # fmt: skip
    say(f"Manifest: {out / 'manifest.parquet'}")


@app.command(name="demo-data")
def demo_data(
    folder: Path,
    *,
    photos: Annotated[int, Parameter(help="How many.")] = 600,
    seed: int = 0,
    workers: Workers = 2,
) -> None:
    """Draw photographs of cassava leaves with known wrong labels, duplicates and broken files.

    truth.parquet says what was planted, so that an audit can be judged.
    """
    from manihot.photos.demo import make_demo

    make_demo(folder, photos=photos, seed=seed, workers=workers)
    say(f"Demo photographs: {folder}   next: manihot run {folder} --out runs/demo")


@app.command
def run(
    photos: Photos, *, out: Out, recipe: RecipeName = None, set_: Sets = None, csv: Table = None,
    image: ImageColumn = None, label: LabelColumn = None, source: SourceColumn = None, group: GroupColumn = None,
    fold: FoldColumn = None, split: SplitColumn = None, classes: ClassMap = None,
    device: Device = "auto", workers: Workers = 2,
    update: Update = False,
) -> None:  # fmt: skip
    """From photographs to an evaluated classifier and a report, in one command.

    Scan, folds, training, out-of-fold predictions, scores, report. Stop it at any moment; the same command
    continues. Without --recipe it takes `quick` where there is no GPU, and says so.
    """
    from manihot import pipeline

    pipeline.run(
        _one_or_many(photos), out, recipe, overrides=set_ or [], device=device, workers=workers,
        update=update, csv=csv, image=image, label=label, source=source, group=group, fold=fold, split=split,
        classes=classes,
    )  # fmt: skip
    compare([out])


@app.command
def audit(
    photos: Annotated[list[Path] | None, Parameter(help="Folder(s), a CSV or a manifest.parquet.")] = None, *, out: Out,
    predictions: Annotated[
        Path | None, Parameter(help="Out-of-fold predictions made anywhere: parquet, or CSV image_id,label,c0,c1,...")
    ] = None,
    what_if: Annotated[bool, Parameter(negative="", help="Also learn under cleaned labels: is it worth it?")] = False,
    trusted: Annotated[str | None, Parameter(help="Column that is true where a label is known to be right.")] = None,
    recipe: RecipeName = "quick", set_: Sets = None, csv: Table = None,
    image: ImageColumn = None, label: LabelColumn = None, source: SourceColumn = None, group: GroupColumn = None,
    fold: FoldColumn = None, split: SplitColumn = None, classes: ClassMap = None, device: Device = "auto",
    workers: Workers = 2, update: Update = False,
) -> None:  # fmt: skip
    """Find what is wrong with photographs and labels: duplicates, wrong labels, sources that differ.

    Tables in OUT/audit, a page in OUT/audit.html; next: manihot clean OUT. With --predictions alone, photographs are
    not needed, and every photograph must have been predicted by a model that never saw it. Nothing is changed.
    """
    from manihot import pipeline

    if photos is None:
        if predictions is None:
            raise SettingsError("nothing to audit", "give PHOTOS, or --predictions OOF.csv")
        from manihot.audit.stages import audit_predictions

        found = audit_predictions(predictions, out)
        say(f"{found['label_issues']} of {found['judged']} labels look wrong: {out / 'audit/label_issues.csv'}")
        return
    if predictions is not None:
        raise SettingsError("--predictions go without photographs", "leave one of them out")
    pipeline.run(
        _one_or_many(photos), out, recipe, overrides=set_ or [], device=device, workers=workers, update=update,
        what_if=what_if, trusted=trusted, csv=csv, image=image, label=label, source=source, group=group, fold=fold,
        split=split, classes=classes,
    )  # fmt: skip


@app.command
def clean(
    run: Annotated[Path, Parameter(help="An audited run folder, or a manifest.parquet.")], *, out: Out,
    rule: Annotated[
        list[str] | None,
        Parameter(
            negative="", consume_multiple=True,
            help="RULE=ACTION; may be repeated, the first one's word holds. Rules: flagged, confident, worst, "
            "cleanlab, duplicates, conflicts. Actions: drop, relabel, soft, down_weight, keep. "
            "Without any: flagged=drop conflicts=soft duplicates=drop.",
        ),
    ] = None,
    decisions: Annotated[Path | None, Parameter(help="A decisions.csv, corrected by hand, instead of rules.")] = None,
    predictions: Annotated[
        Path | None, Parameter(help="Of a model that never saw these photographs, instead of the audit's own.")
    ] = None,
    threshold: Annotated[float, Parameter(help="Probability above which `confident` believes the model.")] = 0.9,
    n: Annotated[int | None, Parameter(help="At most so many photographs a rule, the worst first.")] = None,
    only: Annotated[
        list[str] | None, Parameter(negative="", consume_multiple=True, help="Only photographs with these labels.")
    ] = None,
    weight: Annotated[float, Parameter(help="What a down_weight photograph counts.")] = 0.5,
) -> None:  # fmt: skip
    """Turn an audit's findings into a new manifest: OUT/manifest.parquet, with a reason for every decision.

    The original and its photographs stay as they are. `manihot audit PHOTOS --out RUN --what-if` says beforehand
    whether cleaning is worth it: scores of a run on a cleaned manifest are against the cleaned labels and look better
    than they are.
    """
    from rich.table import Table as Grid

    from manihot.audit.cleaning import clean as clean_labels

    counts = clean_labels(
        run, out, rule or (), decisions=decisions, predictions=predictions, threshold=threshold, n=n, classes=only,
        weight=weight,
    )  # fmt: skip
    grid = Grid(box=None)
    for name in counts.columns:
        grid.add_column(name.replace("_", " "), no_wrap=name == "class")
    for row in counts.itertuples(index=False):
        grid.add_row(*map(str, row))
    console.print(grid)
    say(f"Decisions: {out / 'decisions.csv'}   next: manihot run {out / 'manifest.parquet'} --out {out / 'run'}")


@app.command
def predict(
    model: Annotated[Path, Parameter(help="A run folder, RUN/members/NAME, or one .safetensors.")],
    photos: Annotated[Path, Parameter(help="Folder, CSV or manifest.parquet.")],
    *,
    out: Annotated[
        Path,
        Parameter(
            name=["--out", "-o"],
            help=".parquet, .csv of probabilities, or a name ending in submission.csv (two columns).",
        ),
    ],
    image: ImageColumn = None,
    label: LabelColumn = None,
    tta: Annotated[int | None, Parameter(help="Use only the first so many of the model's views; 1 is fastest.")] = None,
    device: Device = "auto",
    batch: Annotated[int, Parameter(help="Photographs at a time.")] = 32,
    workers: Workers = 2,
) -> None:
    """Predict photographs with a trained model: every member, fold and view averaged."""
    from manihot.infer.predict import predict as predict_with

    predictions = predict_with(
        model, photos, out, tta=tta, device=device, batch=batch, image=image, label=label, workers=workers
    )
    say(f"{len(predictions)} photographs predicted: {out}")


@app.command
def compare(runs: Annotated[list[Path], Parameter(help="Run folders.")]) -> None:
    """A leaderboard of members and runs, finished or not, so that a team sees every score at once."""
    from manihot.deliver.compare import leaderboard, print_leaderboard

    print_leaderboard(leaderboard(runs))


@app.command
def report(run: Annotated[Path, Parameter(help="A run folder.")]) -> None:
    """Write RUN/report.html anew."""
    from manihot.deliver.report import make_report

    say(f"Report: {make_report(run)}")


Oof = Annotated[
    list[Path],
    Parameter(help="Out-of-fold predictions, one file a member: parquet, or CSV image_id,label,c0,c1,..."),
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


@app.command
def blend(
    oof: Oof, *, out: Out, test: Test = None, method: BlendMethod = "auto", weights: Weights = None,
    mean: Annotated[str, Parameter(help="arithmetic, geometric, power or rank.")] = "arithmetic",
    manifest: Groups = None, seed: int = 0,
) -> None:  # fmt: skip
    """Combine members' predictions, and say what the blend is worth on photographs it was not fitted on.

    `auto` is plain averaging unless nested cross-validation shows that a fitted blend is better.
    """
    from manihot.ensemble.files import blend_files

    found = blend_files(oof, out, test or (), method, weights, mean, manifest, seed=seed)
    say(f"Blend: {found['method']}, written to {out / 'blend.json'}")


@app.command
def stack(
    oof: Oof, *, out: Out, test: Test = None, method: Stackers = None, manifest: Groups = None, seed: int = 0,
) -> None:  # fmt: skip
    """Fit a second level on members' out-of-fold predictions, and say whether it gains over plain averaging."""
    from manihot.ensemble.files import stack_files

    found = stack_files(oof, out, test or (), method or ("logistic",), manifest, seed=seed)
    verdict = "a gain over plain averaging" if found["gain"] else "no gain over plain averaging beyond chance"
    scores = f"right {found['accuracy']:.2%}, plain average {found['plain_accuracy']:.2%}"
    say(f"Stack: {scores}: {verdict}; written to {out}")


@app.command
def calibrate(
    oof: Annotated[Path, Parameter(help="Out-of-fold predictions: parquet or CSV.")], *, out: Out,
    kind: Annotated[str, Parameter(help="auto, none, temperature, vector, isotonic, confidence.")] = "auto",
    coverage: Annotated[float, Parameter(help="Share of photographs whose set of answers must hold the truth.")] = 0.9,
    manifest: Groups = None, seed: int = 0,
) -> None:  # fmt: skip
    """Make probabilities mean what they say, and fit sets of answers that hold the truth as often as you name."""
    from manihot.trust.files import calibrate_files

    calibrate_files(oof, out, kind, coverage, manifest=manifest, seed=seed)
    say(f"Calibration and sets: {out / 'trust.json'}")


@app.command(name="show-augment")
def show_augment(
    recipe: Annotated[str, Parameter(help="A recipe's name or a .yaml file.")],
    photo: Path,
    *,
    out: Annotated[Path, Parameter(name=["--out", "-o"], help="A .html or .png file.")] = Path("augment.html"),
    set_: Sets = None,
    n: Annotated[int, Parameter(help="Pictures an epoch.")] = 24,
) -> None:
    """Draw what a recipe's augmentation makes of a photograph, to be checked with your own eyes."""
    from manihot.deliver.show_augment import show_augment as draw
    from manihot.settings import load_recipe

    draw(load_recipe(recipe, set_ or []), photo, out, n=n)
    say(f"Pictures: {out}")


@recipes.default
def list_recipes() -> None:
    """List the recipes that come with the package."""
    from rich.table import Table

    from manihot.settings import load_recipe, recipe_names

    table = Table("recipe", "method", "what it is", box=None)
    for name in recipe_names():
        found = load_recipe(name)
        table.add_row(name, found.method, found.description)
    console.print(table)


@recipes.command
def show(name: str, *, set_: Sets = None) -> None:
    """Show every setting of a recipe, resolved, as YAML that can be saved and changed."""
    from ruamel.yaml import YAML

    from manihot.settings import load_recipe

    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = None
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(load_recipe(name, set_ or []).resolved(), sys.stdout)


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


if __name__ == "__main__":
    main()

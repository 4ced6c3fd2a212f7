"""Commands that train, judge and use models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from manihot.cli.options import (
    Columns,
    Device,
    Out,
    Photos,
    RecipeName,
    Sets,
    Update,
    Workers,
    one_or_many,
)
from manihot.progress import say
from manihot.settings.options import EVERYTHING_GUESSED


def run(
    photos: Photos, *, out: Out, recipe: RecipeName = None, set_: Sets = None,
    columns: Columns = EVERYTHING_GUESSED,
    device: Device = "auto", workers: Workers = 2, update: Update = False,
    smoke: Annotated[
        bool, Parameter(negative="", help="Try the recipe's whole chain on a few small photographs: under a minute.")
    ] = False,
) -> None:  # fmt: skip
    """From photographs to an evaluated classifier and a report, in one command.

    Scan, folds, training, out-of-fold predictions, scores, report. Stop it at any moment; the same command
    continues. Without --recipe it takes `quick` where there is no GPU, and says so.
    """
    from manihot import pipeline

    pipeline.run(
        one_or_many(photos), out, recipe, overrides=set_ or [], device=device, workers=workers,
        update=update, smoke=smoke, columns=columns,
    )  # fmt: skip
    if smoke:
        say("It runs. The figures are of a smoke run: they say nothing about the recipe or the photographs.")
    else:
        compare([out])


def train(
    photos: Photos, *, out: Out, recipe: RecipeName = None, set_: Sets = None,
    columns: Columns = EVERYTHING_GUESSED,
    device: Device = "auto", workers: Workers = 2,
    update: Update = False,
) -> None:  # fmt: skip
    """The training part of `run`, for several GPUs: torchrun --nproc-per-node 4 -m manihot train PHOTOS --out RUN.

    `manihot run` with the same options, in one process, then goes on with blend, audit, scores and report.
    A step sees `train.batch` photographs a process.
    """
    from manihot import pipeline

    names = pipeline.train(
        one_or_many(photos), out, recipe, overrides=set_ or [], device=device, workers=workers,
        update=update, columns=columns,
    )  # fmt: skip
    say(f"Trained: {', '.join(names)}   next: manihot run with the same options")


def predict(
    model: Annotated[Path, Parameter(help="A run folder, RUN/members/NAME, or one .safetensors.")],
    photos: Annotated[Path, Parameter(help="Folder, CSV or manifest.parquet.")],
    *,
    out: Annotated[
        Path,
        Parameter(
            name=["--out", "-o"],
            help=".parquet, .csv of probabilities and names, or a name ending in submission.csv (two columns).",
        ),
    ],
    columns: Columns = EVERYTHING_GUESSED,
    tta: Annotated[int | None, Parameter(help="Use only the first so many of the model's views; 1 is fastest.")] = None,
    raw: Annotated[bool, Parameter(negative="", help="The networks' own probabilities, not calibrated.")] = False,
    device: Device = "auto",
    batch: Annotated[int, Parameter(help="Photographs at a time.")] = 32,
    workers: Workers = 2,
) -> None:
    """Predict photographs with a trained model: every member, fold and view averaged."""
    from manihot.engines import predict as predict_with
    from manihot.infer.outputs import scores_in_words

    predictions = predict_with(
        model, photos, out, tta=tta, raw=raw, device=device, batch=batch, columns=columns, workers=workers
    )
    if scores := scores_in_words(predictions):
        print(scores)
    say(f"{len(predictions)} photographs predicted: {out}")


def compare(runs: Annotated[list[Path], Parameter(help="Run folders.")]) -> None:
    """A leaderboard of members and runs, finished or not, so that a team sees every score at once."""
    from manihot.report.compare import leaderboard, print_leaderboard

    print_leaderboard(leaderboard(runs))


def report(run: Annotated[Path, Parameter(help="A run folder.")]) -> None:
    """Write RUN/report.html anew."""
    from manihot.engines import explain_torch
    from manihot.report.report import make_report

    say(f"Report: {make_report(run, explain_torch)}")


def share(
    run: Annotated[Path, Parameter(help="A run folder.")],
    *,
    out: Annotated[Path, Parameter(name=["--out", "-o"], help="A .zip file.")],
) -> None:
    """Pack what a team needs of a run into one zip: networks, predictions, blend, scores, and no photograph."""
    from manihot.report.share import share_run

    files = share_run(run, out)
    networks = sum(name.endswith(".safetensors") for name in files)
    say(f"{len(files)} files, {networks} networks among them, {out.stat().st_size / 1e6:.1f} MB: {out}")


def show_augment(
    recipe: Annotated[str, Parameter(help="A recipe's name or a .yaml file.")],
    photo: Path,
    *,
    out: Annotated[Path, Parameter(name=["--out", "-o"], help="A .html or .png file.")] = Path("augment.html"),
    set_: Sets = None,
    n: Annotated[int, Parameter(help="Pictures an epoch.")] = 24,
) -> None:
    """Draw what a recipe's augmentation makes of a photograph, to be checked with your own eyes."""
    from manihot.report.show_augment import show_augment as draw
    from manihot.settings import load_recipe

    draw(load_recipe(recipe, set_ or []), photo, out, n=n)
    say(f"Pictures: {out}")


def explain(
    model: Annotated[Path, Parameter(help="A run folder, RUN/members/NAME, or one .safetensors.")],
    photos: Annotated[list[Path], Parameter(help="Photographs or folders.")], *, out: Out = Path("explained"),
    every_fold: Annotated[bool, Parameter(negative="", help="The mean over all folds' networks.")] = False,
    top: Annotated[int, Parameter(help="For how many of the likeliest classes.")] = 2, device: Device = "auto",
) -> None:  # fmt: skip
    """Show where in a photograph a model found its answer: Grad-CAM, or attention rollout for ViT and DeiT.

    OUT is a folder (a page and a picture a map) or one .html file.
    """
    from manihot.engines import explain_torch
    from manihot.networks.runner import choose_device
    from manihot.report.explain import explain as draw

    where = choose_device(device)
    page = draw(model, photos, out, every_fold=every_fold, device=where, top=top, other=explain_torch)
    say(f"Page: {page}")


def lr_find(
    recipe: Annotated[str, Parameter(help="A recipe's name or a .yaml file.")],
    photos: Annotated[
        list[Path] | None,
        Parameter(help="Folder(s), a CSV or a manifest.parquet; drawn demo photographs when left out."),
    ] = None, *,
    out: Annotated[
        Path | None, Parameter(name=["--out", "-o"], help="Where to write; lr-RECIPE when left out.")
    ] = None,
    set_: Sets = None,
    columns: Columns = EVERYTHING_GUESSED,
    member: Annotated[str, Parameter(help="Which member of the recipe; the first when left out.")] = "",
    steps: Annotated[int, Parameter(help="Steps of the sweep, at most.")] = 100,
    device: Device = "auto", workers: Workers = 2,
) -> None:  # fmt: skip
    """Raise the learning rate until training breaks, and suggest one from where the loss fell fastest.

    Writes OUT/lr.csv and OUT/lr.png.
    """
    from manihot.train.lr_find import lr_find as sweep

    found = sweep(
        one_or_many(photos) if photos else None, recipe, out or Path(f"lr-{Path(recipe).stem}"), overrides=set_ or [],
        member=member, steps=steps, device=device, workers=workers, columns=columns,
    )  # fmt: skip
    say(f"Suggested: optimizer.lr={found['suggestion']:.1e} (picture: {found['picture']})")


def translate(
    photos: Photos, *,
    from_: Annotated[str, Parameter(name="--from", help="The class to start from, or a part of its name.")],
    to: Annotated[str, Parameter(help="The class to make pictures of, or a part of its name.")], out: Out,
    size: Annotated[int, Parameter(help="Edge of the pictures, pixels: 64 for a CPU, 256 for a GPU.")] = 256,
    epochs: Annotated[int, Parameter(help="Rounds; in the second half the rate falls to 0.")] = 200,
    width: Annotated[int, Parameter(help="Channels of the first layers; 16 or 32 for a CPU.")] = 64,
    batch: Annotated[int, Parameter(help="Photographs of each class a step.")] = 1,
    cycle_weight: Annotated[float, Parameter(help="How much the way there and back must give the photograph.")] = 10.0,
    identity_weight: Annotated[float, Parameter(help="Share of that for leaving the other class's photographs.")] = 0.5,
    lr: Annotated[float, Parameter(help="Learning rate of Adam.")] = 2e-4, seed: int = 0,
    pictures: Annotated[int | None, Parameter(help="Make so many, drawn by chance; one of each otherwise.")] = None,
    both: Annotated[bool, Parameter(negative="", help="Make pictures of --from out of --to as well.")] = False,
    without_fold: Annotated[
        int | None, Parameter(help="Leave out what this fold of the manifest holds out, for an honest score of it.")
    ] = None,
    name: Annotated[str, Parameter(help="Source of the pictures in the manifest.")] = "translated",
    columns: Columns = EVERYTHING_GUESSED,
    device: Device = "auto", workers: Workers = 2, update: Update = False,
) -> None:  # fmt: skip
    """Redraw photographs of one class as another (CycleGAN), to train on where a class is rare.

    Two networks learn to redraw, one each way, from the training photographs of both classes; no pairs are needed,
    and validation and test photographs are never looked at. Stop it at any moment; the same command continues.
    Look at OUT/samples.png, written anew after every epoch: if it doesn't convince you, it won't teach a classifier.

    OUT/joined.parquet holds your photographs and the pictures, as a source that is trained on and never judged:

    manihot run OUT/joined.parquet --out runs/b --set "sources={translated: {use: train}}"

    Does it help? A score says so if the translator never saw what is judged. With RUN a run without pictures:

    manihot translate RUN/folds.parquet --from healthy --to mosaic --without-fold 0 --out OUT

    Then train fold 0 of OUT/joined.parquet alone (--set "folds.only=[0]") and compare with fold 0 of RUN. Pictures
    made from a photograph that a fold holds out are kept out of that fold's training in any case, as both stand in one
    group; without --without-fold the translator itself has seen it.

    A made picture is no evidence: what the networks leave in it (blur, a pattern) stands under one label, and a
    classifier may learn that instead of the disease. --both leaves the same traces in both classes.
    """
    from manihot.train.translate import translate as redraw

    redraw(
        one_or_many(photos), out, from_, to, size=size, epochs=epochs, width=width, batch=batch,
        cycle_weight=cycle_weight, identity_weight=identity_weight, lr=lr, seed=seed, pictures=pictures, both=both,
        without_fold=without_fold, name=name, device=device, workers=workers, update=update, columns=columns,
    )  # fmt: skip
    say(f"Samples: {out / 'samples.png'}")

"""Verbs that train, judge and use models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from manihot.errors import SettingsError
from manihot.extras import need_train
from manihot.progress import say
from manihot.settings import Recipe
from manihot.settings.options import ANY_NETWORK, EVERYTHING_GUESSED, HERE, ONE_OF_EACH, PLAIN_PAGE, USUAL_TRANSLATION
from manihot.verbs.options import (
    FILES,
    Columns,
    Model,
    NamedRecipe,
    NetworkOptions,
    On,
    Out,
    PageExtras,
    Photos,
    Pictures,
    Place,
    Places,
    RecipeName,
    Run,
    Sets,
    Training,
    Update,
)
from manihot.verbs.places import as_choice, as_path, as_paths, as_recipe, as_source
from manihot.verbs.results import (
    ExportResult,
    Leaderboard,
    LrFindResult,
    PageResult,
    PredictResult,
    RunScores,
    ShareResult,
    TranslateResult,
    run_scores,
)


def run(
    photos: Photos,
    *,
    out: Out,
    recipe: RecipeName = None,
    set: Sets = (),
    columns: Columns = EVERYTHING_GUESSED,
    compute: On = HERE,
    update: Update = False,
    smoke: Annotated[
        bool, Parameter(help="Try every step of the recipe on a few small photographs; takes under a minute.")
    ] = False,
    ray: Annotated[str, Parameter(help="Compute the folds in parallel with Ray: local, or a cluster's address.")] = "",
) -> RunScores:
    """Turn photographs into an evaluated classifier and a report, in one command.

    It scans, makes folds, trains, predicts out of fold, scores and reports. Stop it at any time; run it again to
    resume. Without --recipe it uses `quick` on a machine without a GPU and `standard` on one with a GPU.
    """
    from manihot import pipeline

    chosen = as_choice(recipe, set)
    if ray:
        from manihot.scale.cluster import compute_folds

        if smoke:
            raise SettingsError("--smoke tries a recipe in one process, not by --ray", "leave one of them out")
        compute_folds(
            as_source(photos), Path(out), chosen, ray, overrides=set, compute=compute, update=update, columns=columns
        )
        update = False
    scores = pipeline.run(
        as_source(photos),
        Path(out),
        chosen,
        overrides=set,
        device=compute.device,
        workers=compute.workers,
        update=update,
        smoke=smoke,
        columns=columns,
    )
    return run_scores(Path(out), scores, smoke)


def predict(
    model: Model,
    photos: Annotated[Place, Parameter(help="Folder, CSV or manifest.parquet.")],
    *,
    out: Annotated[
        Out,
        Parameter(help=".parquet, .csv of probabilities and names, or a name ending in submission.csv (two columns)."),
    ],
    tta: Annotated[int | None, Parameter(help="Number of the model's test-time views to use; 1 is fastest.")] = None,
    raw: Annotated[bool, Parameter(help="Write the networks' own probabilities, uncalibrated.")] = False,
    batch: Annotated[int, Parameter(help="Batch size.")] = 32,
    pool: Annotated[
        Literal["group"] | None,
        Parameter(help="`group`: also one answer per plant, from all its photographs (--group names the plants)."),
    ] = None,
    columns: Columns = EVERYTHING_GUESSED,
    compute: On = HERE,
) -> PredictResult:
    """Predict photographs with a trained run, averaged over members, folds and views, or with an exported model."""
    from manihot.engines import predict as predict_with

    predictions = predict_with(
        Path(model),
        Path(photos),
        Path(out),
        tta=tta,
        raw=raw,
        device=compute.device,
        batch=batch,
        workers=compute.workers,
        columns=columns,
        pool=pool == "group",
    )
    return PredictResult(predictions=predictions, path=Path(out))


def compare(runs: Annotated[Places, Parameter(help="Run folders.")]) -> Leaderboard:
    """Show a leaderboard of runs and their members, finished or not."""
    from manihot.report.compare import leaderboard

    return Leaderboard(table=leaderboard(as_paths(runs)))


def report(run: Run) -> PageResult:
    """Regenerate RUN/report.html."""
    from manihot.engines import explain_torch
    from manihot.report.report import make_report

    return PageResult(page=make_report(Path(run), explain_torch))


def share(run: Run, *, out: Annotated[Out, Parameter(help="A .zip file.")]) -> ShareResult:
    """Pack what a team needs from a run into one zip file: networks, predictions, blend and scores, no photographs."""
    from manihot.report.share import share_run

    files = share_run(Path(run), Path(out))
    return ShareResult(path=Path(out), files=tuple(files), size=Path(out).stat().st_size)


def export(
    run: Annotated[Place, Parameter(help="A finished run of one member, or RUN/members/NAME.")],
    *,
    out: Annotated[Out | None, Parameter(help="The folder for the model.")] = None,
    int8: Annotated[bool, Parameter(help="Also write OUT/model.int8.onnx, a third to a quarter of the size.")] = False,
    phone: Annotated[Place | None, Parameter(help="Also write one .html file that classifies offline.")] = None,
    runtime: Annotated[
        Place | None, Parameter(help="For --phone and --app: the unpacked npm package onnxruntime-web.")
    ] = None,
    page: PageExtras = PLAIN_PAGE,
    choice: NetworkOptions = ANY_NETWORK,
) -> ExportResult:
    """Export a run as one ONNX network that works without manihot, with a certificate of its measured performance.

    OUT/model.onnx takes uint8 photographs and returns calibrated probabilities; OUT/model.json describes its input.
    """
    from manihot.export.write import export_run

    folder, file = as_path(out), as_path(phone)
    certificate = export_run(
        Path(run), folder, int8=int8, phone=file, runtime=as_path(runtime), page=page, wanted=choice
    )
    files = () if folder is None else tuple(sorted(folder.glob("model*.onnx")))
    return ExportResult(files=files, page=file, app=page.app, certificate=certificate)


def show_augment(
    recipe: NamedRecipe,
    photo: Annotated[Place, Parameter(help="A photograph.")],
    *,
    out: Annotated[Out, Parameter(help="A .html or .png file.")] = Path("augment.html"),
    set: Sets = (),
    n: Annotated[int, Parameter(help="Number of pictures per epoch.")] = 24,
    mix_with: Annotated[
        Places, FILES, Parameter(help="Other photographs to mix with, as the recipe does.", show_default=False)
    ] = (),
) -> PageResult:
    """Draw a photograph under a recipe's augmentation, so that you can check it by eye.

    With --mix-with, also draw the recipe's mixes (MixUp, CutMix, FMix, SnapMix, ...) with other photographs.
    """
    from manihot.report.show_augment import show_augment as draw

    chosen, others = as_recipe(recipe, set), as_paths(mix_with)
    mixing = any(member.mixing for member in chosen.member_recipes().values())
    if not others:
        if mixing:
            say("The recipe mixes photographs: --mix-with OTHER.jpg draws that too.")
        return PageResult(page=draw(chosen, Path(photo), Path(out), n=n))
    if not mixing:
        raise SettingsError("--mix-with: the recipe mixes nothing", "leave it out, or set mixing")
    need_train("drawing mixes")
    from manihot.train.show_mixes import mixed_pictures

    return PageResult(page=draw(chosen, Path(photo), Path(out), n=n, others=others, mixes=mixed_pictures))


def explain(
    model: Model,
    photos: Annotated[Places, Parameter(help="Photographs or folders.")],
    *,
    out: Out = Path("explained"),
    every_fold: Annotated[bool, Parameter(help="Average the maps over the networks of all folds.")] = False,
    top: Annotated[int, Parameter(help="Number of most probable classes to draw maps for.")] = 2,
    compute: On = HERE,
) -> PageResult:
    """Show which parts of a photograph a prediction rests on: Grad-CAM, or attention rollout for ViT and DeiT.

    OUT is a folder (a page, and one picture per map) or a single .html file.
    """
    from manihot.engines import explain_torch
    from manihot.networks.runner import choose_device
    from manihot.report.explain import explain as draw

    page = draw(
        Path(model),
        as_paths(photos),
        Path(out),
        every_fold=every_fold,
        device=choose_device(compute.device),
        top=top,
        other=explain_torch,
    )
    return PageResult(page=page)


def lr_find(
    recipe: NamedRecipe,
    photos: Annotated[
        Photos | None, Parameter(help="Folder(s), a CSV or a manifest.parquet; demo photographs when left out.")
    ] = None,
    *,
    out: Annotated[Out | None, Parameter(help="Where to write; lr-RECIPE by default.")] = None,
    set: Sets = (),
    member: Annotated[str, Parameter(help="A member of the recipe; the first by default.")] = "",
    steps: Annotated[int, Parameter(help="Largest number of steps of the sweep.")] = 100,
    columns: Columns = EVERYTHING_GUESSED,
    compute: On = HERE,
) -> LrFindResult:
    """Raise the learning rate until training diverges, and suggest one from where the loss fell fastest.

    Writes OUT/lr.csv and OUT/lr.png.
    """
    need_train("`manihot lr-find`")
    from manihot.train.lr_find import lr_find as sweep

    chosen = as_choice(recipe, set)
    name = chosen.name if isinstance(chosen, Recipe) else Path(chosen).stem
    found = sweep(
        None if photos is None else as_source(photos),
        chosen,
        Path(out or f"lr-{name}"),
        overrides=set,
        member=member,
        steps=steps,
        device=compute.device,
        workers=compute.workers,
        columns=columns,
    )
    return LrFindResult(**found)


def translate(
    photos: Photos,
    *,
    from_: Annotated[str, Parameter(help="The class to start from, or part of its name.")],
    to: Annotated[str, Parameter(help="The class to make pictures of, or part of its name.")],
    out: Out,
    training: Training = USUAL_TRANSLATION,
    made: Pictures = ONE_OF_EACH,
    columns: Columns = EVERYTHING_GUESSED,
    compute: On = HERE,
    update: Update = False,
) -> TranslateResult:
    """Redraw photographs of one class as another (CycleGAN), to train on where a class is rare.

    Two networks, one for each direction, learn from the training photographs of both classes. No pairs are needed;
    validation and test photographs are never used. Stop it at any time; run it again to resume. Inspect
    OUT/samples.png, rewritten after every epoch: if it doesn't convince you, it won't help a classifier.

    OUT/joined.parquet lists your photographs and the made pictures; the pictures are a source used for training only:

    manihot run OUT/joined.parquet --out runs/b --set "sources={translated: {use: train}}"

    Does it help? Only a score on photographs that the translator never saw can show that. RUN is a run without
    pictures:

    manihot translate RUN/folds.parquet --from healthy --to mosaic --without-fold 0 --out OUT

    Then train fold 0 of OUT/joined.parquet alone (--set "folds.only=[0]") and compare with fold 0 of RUN. Pictures
    made from a held-out photograph are always kept out of that fold's training, as both belong to one group; but
    without --without-fold, the translator itself has seen it.

    A made picture is not evidence. The networks leave traces in it (blur, a pattern) that occur under one label only,
    and a classifier may learn those instead of the disease. --both leaves the same traces in both classes.
    """
    need_train("`manihot translate`")
    from manihot.train.translate import translate as redraw

    found = redraw(
        as_source(photos),
        Path(out),
        from_,
        to,
        training=training,
        made=made,
        device=compute.device,
        workers=compute.workers,
        update=update,
        columns=columns,
    )
    return TranslateResult(**found)

"""Arguments that several verbs share, with their help texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, Token

from manihot.settings import Recipe
from manihot.settings.options import (
    ArmOptions,
    BlendOptions,
    CleaningRules,
    Compute,
    NetworkChoice,
    PageOptions,
    ServerOptions,
    TableOptions,
    TranslatedPictures,
    Translation,
)
from manihot.verbs.places import PathLike


def _one(_: Any, tokens: Sequence[Token]) -> Path:
    return Path(tokens[0].value)


def _text(_: Any, tokens: Sequence[Token]) -> str:
    return tokens[0].value


def _one_or_many(_: Any, tokens: Sequence[Token]) -> Path | list[Path]:
    """A single place as itself, several as a list."""
    places = [Path(token.value) for token in tokens]
    return places[0] if len(places) == 1 else places


FILE = Parameter(converter=_one, n_tokens=1, metavar="PATH")
FILES = Parameter(converter=_one_or_many, n_tokens=-1, metavar="PATH...")
GIVEN_ALONE = Parameter(consume_multiple=False, show_default=False)  # `--set a=1 PHOTOS`

Place = Annotated[PathLike, FILE]
Places = Annotated[PathLike | Sequence[PathLike], FILES]
Out = Annotated[Place, Parameter(name=["--out", "-o"], help="Where to write.")]
Photos = Annotated[Places, Parameter(help="Folder(s), a CSV or a manifest.parquet.")]
Run = Annotated[Place, Parameter(help="A run folder.")]
Model = Annotated[Place, Parameter(help="A run folder, RUN/members/NAME, an exported folder, or a network's file.")]
RECIPE = Parameter(converter=_text, n_tokens=1, accepts_keys=False, metavar="RECIPE")
RecipeName = Annotated[
    str | Path | Recipe | None,
    RECIPE,
    Parameter(name=["--recipe", "-r"], help="A name (see `manihot recipes`) or a .yaml file."),
]
NamedRecipe = Annotated[str | Path | Recipe, RECIPE, Parameter(help="A recipe's name or a .yaml file.")]
Sets = Annotated[
    Sequence[str],
    GIVEN_ALONE,
    Parameter(name=["--set", "-s"], help="A setting, key=value, e.g. train.epochs=3; may be repeated."),
]
Update = Annotated[bool, Parameter(help="Redo whatever in OUT depends on changed settings or photographs.")]
Manifest = Annotated[Place | None, Parameter(help="manifest.parquet whose groups keep duplicates together.")]
Seed = Annotated[int, Parameter(help="Random seed.")]

Columns = Annotated[TableOptions, Parameter(name="*")]
On = Annotated[Compute, Parameter(name="*")]
Rules = Annotated[CleaningRules, Parameter(name="*")]
How = Annotated[BlendOptions, Parameter(name="*")]
Arms = Annotated[ArmOptions, Parameter(name="*")]
Training = Annotated[Translation, Parameter(name="*")]
Server = Annotated[ServerOptions, Parameter(name="*")]
NetworkOptions = Annotated[NetworkChoice, Parameter(name="*")]
PageExtras = Annotated[PageOptions, Parameter(name="*")]
Pictures = Annotated[TranslatedPictures, Parameter(name="*")]

"""Groups of options that many verbs share: how a table of photographs is read, and what to compute on.

Each is one frozen dataclass that travels whole as one argument; the command line shows a field as an option and the
string below it as help.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """Which table lists the photographs, and what each of its columns means.

    None is guessed: `image` and `label` by usual names; `source`, `group`, `fold` and `split` where a column has just
    that name; `id` and `trusted` never. '' stands for none.
    """

    csv: Path | None = None
    """A table of photographs whose paths start at PHOTOS."""
    image: str | None = None
    """Column with the file, or a pattern such as leaf/{id}.jpg."""
    label: str | None = None
    """Column with the class."""
    source: str | None = None
    """Column that names where a photograph comes from."""
    group: str | None = None
    """Column of what must stay in one fold (a plant, a leaf); or a pattern of file names: '{group}_*'; or auto: bursts,
    shots of one scene."""
    fold: str | None = None
    """Column with your own folds, 0 to K-1."""
    split: str | None = None
    """Column with train, val or test."""
    id: str | None = None
    """Column with a unique id for each photograph."""
    trusted: str | None = None
    """Column that is true, yes or 1 where a label is known to be right; the manifest keeps it under its name."""
    classes: Path | None = None
    """JSON file that maps label numbers to class names."""
    alias: Path | None = None
    """YAML or JSON file that maps other names of classes, such as a second source's folders, to the first source's."""
    folders: str | None = None
    """What the folder levels below PHOTOS mean, such as '{split}/{class}'; '' for nothing."""
    keep_na: bool = False
    """Treat words such as 'nan' and 'none' as labels, not as missing."""
    allow_missing: bool = False
    """Accept a table most of whose photographs are missing."""
    merge_case: bool = False
    """Merge classes whose names differ only in capitals, spaces or hyphens, under the commonest name."""

    def given(self) -> dict[str, str]:
        """The options that are not left out, by name, as text."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: str(value) for name, value in values.items() if value not in (None, False)}

    def named(self) -> str:
        """The options that are not left out, as a user writes them: `--csv, --label`."""
        return ", ".join(f"--{name.replace('_', '-')}" for name in self.given())

    @property
    def bursts(self) -> bool:
        """Whether shots of one scene are to be found and kept together."""
        return self.group == "auto"


EVERYTHING_GUESSED = TableOptions()


@dataclass(frozen=True, kw_only=True)
class Compute:
    """What to compute on. The result depends on neither the number of workers nor the batch size."""

    device: str = "auto"
    """auto, cpu, cuda or mps."""
    workers: int = 2
    """Number of processes that read photographs; a single one for less than 50 MB in total."""


HERE = Compute()


@dataclass(frozen=True, kw_only=True)
class CleaningRules:
    """Which photographs a cleaning changes, and how.

    Rules: flagged, confident, worst, cleanlab, duplicates, conflicts. Actions: drop, relabel, soft, down_weight, keep.
    """

    rule: tuple[str, ...] = ()
    """RULE=ACTION; may be repeated: the first matching rule wins. Default: flagged=drop conflicts=soft
    duplicates=drop. Rules: flagged, confident, worst, cleanlab, duplicates, conflicts. Actions: drop, relabel, soft,
    down_weight, keep."""
    threshold: float | None = None
    """Probability above which `confident` believes the model (0.9)."""
    n: int | None = None
    """Largest number of photographs per rule, worst first."""
    only: tuple[str, ...] = ()
    """Only photographs with these labels."""
    weight: float | None = None
    """Weight of a down_weight photograph (0.5)."""


@dataclass(frozen=True, kw_only=True)
class ReviewTeam:
    """Who reviews on a server, and where the answers go."""

    reviewers: tuple[str, ...] = ()
    """Names of the reviewers; each gets a link, as does the lead."""
    reviewers_per_photo: int = 1
    """Number of people who answer each photograph."""
    database: str = ""
    """URL of the database: sqlite:////folder/file (RUN/review/answers.sqlite) or postgresql://..."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for other machines, behind a proxy that speaks HTTPS."""
    port: int = 8000
    """Port to listen on."""
    new_links: bool = False
    """Give the named reviewers and the lead new links; the old ones expire."""

    def named(self) -> str:
        """The options that are not left out, as a user writes them."""
        changed = [field.name for field in fields(self) if getattr(self, field.name) != field.default]
        return ", ".join(f"--{name.replace('_', '-')}" for name in changed)


ALONE = ReviewTeam()


@dataclass(frozen=True, kw_only=True)
class BlendOptions:
    """How members are combined."""

    method: str = "auto"
    """auto, uniform, a mean or a search."""
    weights: tuple[float, ...] = ()
    """Fixed weights, one per member."""
    mean: str = "arithmetic"
    """arithmetic, geometric, power or rank."""
    views: bool = False
    """Weight each test-time view of each member; pass one RUN whose recipe sets save_views."""


@dataclass(frozen=True, kw_only=True)
class ArmOptions:
    """Which arms of a suite to train, and on which photographs."""

    only: tuple[str, ...] = ()
    """Train only these arms, and those that they depend on."""
    second: str = ""
    """A second source, used only by the arms that need one."""
    second_but: tuple[str, ...] = ()
    """Classes of the second source to leave out in the arm that uses part of it."""


@dataclass(frozen=True)
class Translation:
    """How the two translators are trained (CycleGAN)."""

    size: int = 256
    """Edge of the square pictures in pixels: 64 for a CPU, 256 for a GPU."""
    epochs: int = 200
    """Number of epochs; in the second half the learning rate falls to 0."""
    width: int = 64
    """Channels of the first layers; 16 or 32 for a CPU."""
    batch: int = 1
    """Photographs of each class per step."""
    cycle_weight: float = 10.0
    """Weight of the L1 loss after translating there and back."""
    identity_weight: float = 0.5
    """Weight of the identity loss, as a fraction of the cycle weight; 0 for none."""
    lr: float = 2e-4
    """Learning rate of Adam in the first half of the epochs."""
    seed: int = 0
    """Seed of everything random."""


@dataclass(frozen=True, kw_only=True)
class TranslatedPictures:
    """Which pictures the translators make."""

    pictures: int | None = None
    """Number of pictures, from photographs drawn at random; by default one per photograph."""
    both: bool = False
    """Also make pictures of --from out of photographs of --to."""
    without_fold: int | None = None
    """Leave out what this fold of the manifest holds out, so that its score is honest."""
    name: str = "translated"
    """Name of the pictures' source in the manifest."""


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Where a server listens, what it accepts, and how much at once."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all networks of this machine."""
    port: int = 8000
    """Port to listen on; 0 for any free one."""
    precision: Literal["fp32", "int8"] | None = None
    """Which network of EXPORT to use; by default the same one as `manihot predict EXPORT`."""
    tokens: Path | None = None
    """Text file with NAME TOKEN on each line: only requests with one of these tokens are answered."""
    page: Path | None = None
    """The phone page, shown at /; EXPORT/phone.html by default, if present."""
    returns: Path | None = None
    """Folder for photographs returned from phones; without it, none are accepted."""
    cors: tuple[str, ...] = ()
    """Origins whose pages may send requests, such as https://example.org; none by default."""
    name: str = "manihot"
    """Name of the model in the paths of the Open Inference Protocol."""
    max_mb: float = 25.0
    """Largest body in MB: one photograph, or a zip of several."""
    seconds: float = 30.0
    """Longest time to send a body, to decode a photograph, and to finish open requests at the end."""
    queue: int = 64
    """Largest number of photographs in progress; further requests get status 429 (try again later)."""
    batch: int = 4
    """Largest batch of the network."""
    wait_ms: float = 5.0
    """Longest time that the first photograph of a batch waits for others."""


@dataclass(frozen=True, kw_only=True)
class PageOptions:
    """What the phone page has besides the model."""

    title: str = "What is wrong with this plant?"
    """For --phone and --app: the title of the page; the default is translated."""
    advice: Path | None = None
    """For --phone and --app: advice.yaml, what to do about each class, with pictures."""
    app: Path | None = None
    """Also a folder for an https host: the phone page as an app that can be installed."""


@dataclass(frozen=True, kw_only=True)
class NetworkChoice:
    """Which network is exported, and how its weights are kept."""

    network: str | None = None
    """Network of a fine-tuned run: refit, folds, fold0, fold1, ...; by default the first within the limits."""
    max_mb: float | None = None
    """Largest size of the network, in megabytes at single precision."""
    max_ms: float | None = None
    """Largest latency in milliseconds per photograph, in onnxruntime on one thread."""
    int8_kind: Literal["weights", "static"] = "weights"
    """With --int8: only weights in 8 bits, or activations too (faster on a server; more answers change)."""


USUAL_RULES = CleaningRules()
USUAL_BLEND = BlendOptions()
ALL_ARMS = ArmOptions()
USUAL_TRANSLATION = Translation()
ONE_OF_EACH = TranslatedPictures()
USUAL_SERVER = ServerOptions()
ANY_NETWORK = NetworkChoice()
PLAIN_PAGE = PageOptions()

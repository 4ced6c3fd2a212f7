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
    """Which table lists the photographs, and which of its columns says what.

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
    """Column of what must stay together in a fold (a plant, a leaf), a pattern of file names: '{group}_*', or auto:
    bursts, shots of one scene."""
    fold: str | None = None
    """Column with your own folds, 0 to K-1."""
    split: str | None = None
    """Column with train, val or test."""
    id: str | None = None
    """Column with an id of its own for each photograph."""
    trusted: str | None = None
    """Column that is true, yes or 1 where a label is known to be right; the manifest keeps it under its name."""
    classes: Path | None = None
    """JSON file that maps label numbers to class names."""
    alias: Path | None = None
    """YAML or JSON file: other names of classes, such as a second source's folders, to the first's."""
    folders: str | None = None
    """What the folders below PHOTOS are, such as '{split}/{class}'; '' for nothing."""
    keep_na: bool = False
    """Words such as 'nan' and 'none' are labels, not missing ones."""
    allow_missing: bool = False
    """Most photographs of a table may be missing."""
    merge_case: bool = False
    """Classes that differ in capitals, spaces or hyphens only are one, under the commonest name."""

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
    """Processes that read photographs; one is used for less than 50 MB in total."""


HERE = Compute()


@dataclass(frozen=True, kw_only=True)
class CleaningRules:
    """Which photographs a cleaning changes, and how.

    Rules: flagged, confident, worst, cleanlab, duplicates, conflicts. Actions: drop, relabel, soft, down_weight, keep.
    """

    rule: tuple[str, ...] = ()
    """RULE=ACTION; may be repeated, the first that names a photograph decides. Without any: flagged=drop conflicts=soft
    duplicates=drop. Rules: flagged, confident, worst, cleanlab, duplicates, conflicts. Actions: drop, relabel, soft,
    down_weight, keep."""
    threshold: float | None = None
    """Probability above which `confident` believes the model (0.9)."""
    n: int | None = None
    """At most so many photographs per rule, the worst first."""
    only: tuple[str, ...] = ()
    """Only photographs with these labels."""
    weight: float | None = None
    """What a down_weight photograph counts (0.5)."""


@dataclass(frozen=True, kw_only=True)
class ReviewTeam:
    """Who reviews on a server, and where the answers go."""

    reviewers: tuple[str, ...] = ()
    """Names of those who get a link; the lead gets one anyway."""
    reviewers_per_photo: int = 1
    """How many people answer each photograph."""
    database: str = ""
    """URL of the database: sqlite:////folder/file (RUN/review/answers.sqlite) or postgresql://..."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for other machines, behind a proxy that speaks HTTPS."""
    port: int = 8000
    """Port to listen on."""
    new_links: bool = False
    """Give everybody named, and the lead, new links; the old ones end."""

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
    """Weigh each test-time view of each member: give one RUN whose recipe has save_views."""


@dataclass(frozen=True, kw_only=True)
class ArmOptions:
    """Which arms of a suite are trained, and on which photographs."""

    only: tuple[str, ...] = ()
    """These arms, and those that they need."""
    second: str = ""
    """A source that only the arms with a second source train on."""
    second_but: tuple[str, ...] = ()
    """Classes of it that the arm with a part of it leaves out."""


@dataclass(frozen=True)
class Translation:
    """How two translators are trained (CycleGAN)."""

    size: int = 256
    """Edge of the square pictures in pixels: 64 for a CPU, 256 for a GPU."""
    epochs: int = 200
    """Epochs; in the second half the rate falls to 0."""
    width: int = 64
    """Channels of the first layers; 16 or 32 for a CPU."""
    batch: int = 1
    """Photographs of each class per step."""
    cycle_weight: float = 10.0
    """Weight of the L1 loss after translating there and back."""
    identity_weight: float = 0.5
    """Weight of the identity loss, as a share of that; 0 for none."""
    lr: float = 2e-4
    """Learning rate of Adam in the first half of the epochs."""
    seed: int = 0
    """Seed of everything random."""


@dataclass(frozen=True, kw_only=True)
class TranslatedPictures:
    """Which pictures are made by the translators."""

    pictures: int | None = None
    """Make so many, drawn at random; one of each photograph otherwise."""
    both: bool = False
    """Make pictures of --from out of --to as well."""
    without_fold: int | None = None
    """Leave out what this fold of the manifest holds out, for an honest score of it."""
    name: str = "translated"
    """Source of the pictures in the manifest."""


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Where a server listens, what it takes, and how much at once."""

    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 for every network that this machine is in."""
    port: int = 8000
    """Port to listen at; 0 for any free one."""
    precision: Literal["fp32", "int8"] | None = None
    """Which network of EXPORT answers; the one that `manihot predict EXPORT` takes, when left out."""
    tokens: Path | None = None
    """Text file, NAME TOKEN per line: only requests with one of these tokens are answered."""
    page: Path | None = None
    """The phone page, shown at /; EXPORT/phone.html where it is there."""
    returns: Path | None = None
    """Folder that keeps the photographs that phones hand in; none are taken without it."""
    cors: tuple[str, ...] = ()
    """Origins whose pages may ask, such as https://example.org; none without it."""
    name: str = "manihot"
    """Name of the model in the paths of the Open Inference Protocol."""
    max_mb: float = 25.0
    """Largest body in MB: one photograph, or a zip of several."""
    seconds: float = 30.0
    """Longest time to send a body, to decode a photograph, and to drain at the end."""
    queue: int = 64
    """Photographs at once; who comes when there are more is asked to come again later (429)."""
    batch: int = 4
    """Photographs through the network at once, at most."""
    wait_ms: float = 5.0
    """Longest time that the first photograph of a batch waits for others."""


@dataclass(frozen=True, kw_only=True)
class NetworkChoice:
    """Which network is exported, and how its weights are kept."""

    network: str | None = None
    """Of a fine-tuned run: refit, folds, fold0, fold1, ...; the first that is small and fast enough otherwise."""
    max_mb: float | None = None
    """Choose one of at most so many megabytes in single precision."""
    max_ms: float | None = None
    """Choose one of at most so many milliseconds per photograph, in onnxruntime on one thread."""
    int8_kind: Literal["weights", "static"] = "weights"
    """With --int8: weights alone in 8 bits, or activations too: faster on a server, more answers change."""


USUAL_RULES = CleaningRules()
USUAL_BLEND = BlendOptions()
ALL_ARMS = ArmOptions()
USUAL_TRANSLATION = Translation()
ONE_OF_EACH = TranslatedPictures()
USUAL_SERVER = ServerOptions()
ANY_NETWORK = NetworkChoice()

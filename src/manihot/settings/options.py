"""Groups of options that many verbs share: how a table of photographs is read, and what to compute on.

Each is one frozen dataclass that travels whole as one argument; the command line shows a field as an option and the
string below it as help.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path


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

"""One family of errors: each message names the file or setting and the remedy.

The command line prints the message without a stack trace and leaves with `exit_code`, so that a script
can distinguish a mistake in the settings from a full disk.
"""

from __future__ import annotations

from typing import ClassVar


class ManihotError(Exception):
    """Something a user can mend; `remedy` says how."""

    exit_code = 1

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.what}\n  remedy: {self.remedy}" if self.remedy else self.what


class SettingsError(ManihotError):
    """A recipe or an option that can't be understood."""

    exit_code = 2


class MissingExtraError(SettingsError):
    """A part of manihot that isn't installed: an extra such as `train`, which brings torch."""

    INSTALL: ClassVar[dict[str, str]] = {
        "train": 'pip install "manihot[train]"; without an NVIDIA GPU, install torch for the CPU first: choose Pip '
        "and CPU on PyTorch's site, or with uv: uv pip install --torch-backend=cpu torch torchvision timm"
    }

    def __init__(self, what: str, extra: str = "train") -> None:
        remedy = self.INSTALL.get(extra, f'pip install "manihot[{extra}]"')
        super().__init__(f"{what} needs the extra {extra!r}, which is not installed", remedy)


class DataError(ManihotError):
    """Photographs, labels, a manifest or predictions that don't fit what was asked."""

    exit_code = 3


class WeightsError(ManihotError):
    """Pretrained weights or a saved model that can't be loaded."""

    exit_code = 4


class RunFolderError(ManihotError):
    """A run folder that can't be written, is in use, or belongs to other settings."""

    exit_code = 5


class DiskFullError(RunFolderError):
    """No space is left where the run folder lies; the last good state stays."""

    exit_code = 28


EXIT_PIPE = 141  # nobody reads standard output any more, as in `| head -1`
EXIT_INTERRUPTED = 130  # Ctrl-C
EXIT_TERMINATED = 143  # SIGTERM

"""The two kinds of things in a recipe, groups of settings and techniques with settings of their own."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

KeyPath = tuple[str | int, ...]
Lines = dict[KeyPath, str]  # the `file:line` of a key


class Group(BaseModel):
    """A frozen group of settings; unknown keys are errors.

    LATER: settings that were added to a group; a dump leaves them out where they are the default, so that runs which
    were started before they existed stay the same runs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    LATER: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _as_before(self, values: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        same = {name for name in self.LATER if getattr(self, name) == fields[name].default}
        return {key: value for key, value in values(self).items() if key not in same}


class Choice(BaseModel):
    """One row of a registry with its settings: `{name: rotate, limit: 20}`."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str

    @property
    def settings(self) -> dict[str, Any]:
        """The keyword arguments that stand beside `name`."""
        return dict(self.model_extra or {})


def suggest(wrong: str, names: Sequence[str]) -> str:
    """A sentence that offers the nearest right name, or all of them when none is near."""
    alike = [name for name in names if name.casefold() == str(wrong).casefold()]
    near = alike or difflib.get_close_matches(str(wrong), list(names), n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"one of: {', '.join(sorted(names))}"

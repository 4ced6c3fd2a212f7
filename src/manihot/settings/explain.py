"""What pydantic says of wrong settings, in words: file, line, key, what was found, what the setting takes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticUndefined

from manihot.errors import SettingsError
from manihot.settings.kinds import Choice, Group, KeyPath, suggest

MOST_TOLD = 10  # faults of one file
T = TypeVar("T", bound=BaseModel)


def validated(kind: type[T], values: Any, lines: Mapping[KeyPath, str], prefix: KeyPath = (), above: str = "") -> T:
    """`values` as the group `kind`; SettingsError with file, line and remedy of all that is wrong.

    prefix: where `values` stand in the file that `lines` is of. above: what a key's name begins with in errors.
    """
    try:
        # as JSON: strict (no text or yes/no for a number), yet lists may stand for tuples
        return kind.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        errors = error.errors()
        inner = {tuple(e["loc"][:end]) for e in errors for end in range(len(e["loc"]))}
        wrong = [problem for problem in errors if problem["loc"] not in inner]
    problems = [_explain(kind, problem, lines, prefix, above) for problem in wrong[:MOST_TOLD]]
    what = "\n".join(text for text, _ in problems)
    if len(wrong) > MOST_TOLD:
        what += f"\nand {len(wrong) - MOST_TOLD} more"
    raise SettingsError(what, "; ".join(dict.fromkeys(remedy for _, remedy in problems if remedy)))


def _explain(
    root: type[BaseModel], problem: Any, lines: Mapping[KeyPath, str], prefix: KeyPath, above: str
) -> tuple[str, str]:
    *groups, last = problem["loc"] or ("",)
    unknown = problem["type"] == "extra_forbidden"
    key = tuple(part for part in groups if not _is_type_tag(part))
    key += (last,) if unknown or not _is_type_tag(last) else ()
    whole = (*prefix, *key)
    places = [whole[:end] for end in range(len(whole), len(prefix), -1)]
    places += [key[:end] for end in range(len(key), 0, -1)]
    places += [prefix[:end] for end in range(len(prefix), -1, -1)]
    where = next((lines[place] for place in places if place in lines), "recipe")
    dotted = above + ".".join(map(str, key)) or root.__name__.lower()
    if unknown:
        group = _group_at(root, key[:-1])
        return f"{where}: unknown setting {dotted!r}", suggest(str(key[-1]), list(group.model_fields))
    got = problem.get("input")
    remedy = _remedy(root, key, got)
    return f"{where}: {dotted}: {problem['msg'].removeprefix('Value error, ')} (got {shown(got)})", remedy


def shown(value: Any) -> str:
    """A value as it is shown in an error, cut off after 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", dict: "a mapping, {name: ...}"}


def _remedy(root: type[BaseModel], key: KeyPath, got: Any) -> str:
    """What a setting takes, from its type and default: 'features.batch takes a whole number, for example 32'."""
    inside = len(key) > 1 and isinstance(key[-1], int)
    name = key[-2] if inside else key[-1] if key else ""
    field = _group_at(root, key[: -2 if inside else -1]).model_fields.get(str(name))
    if field is None:
        return ""
    default = field.get_default(call_default_factory=True)
    kind = _kind(field.annotation)
    if isinstance(last := key[-1] if key else "", int) and isinstance(default, tuple):  # one of a list
        default = default[last] if last < len(default) else next(iter(default), None)
        kind = _kind(next(iter(get_args(field.annotation)), None))
    text = f"{'.'.join(map(str, key))} takes {kind}"
    if isinstance(got, str) and got.strip().lstrip("+-").replace(".", "", 1).isdigit() and "number" in kind:
        text += ", without quotes"
    if default is None or default is PydanticUndefined or default in ((), {}, "") or isinstance(default, Group | bool):
        return text
    return f"{text}, for example {_as_yaml(default)}"


def _kind(annotation: Any) -> str:
    """A type in words."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(inner[0])
    if origin is Literal:
        return f"one of {', '.join(repr(name) for name in inner)}"
    if origin is tuple:
        size = "a list" if Ellipsis in inner else f"a list of {len(inner)}"
        return f"{size}, each {_kind(inner[0])}"
    if origin in (Union, UnionType):
        return " or ".join(_kind(one) for one in inner if one is not type(None))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "a technique, {name: ...}" if issubclass(annotation, Choice) else "a group of settings, {key: value}"
    return KINDS.get(origin or annotation, "something else")


def _as_yaml(value: Any) -> str:
    """A default as it would be written in a recipe, on one line."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", exclude_defaults=not isinstance(value, Choice))
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_as_yaml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_as_yaml, value)) + "]"
    return json.dumps(value) if isinstance(value, bool) else str(value)


def _is_type_tag(part: str | int) -> bool:
    """Whether pydantic, not the recipe, wrote this part of a place: the tried branch of a union."""
    return isinstance(part, str) and (part in ("bool", "str") or part.startswith(("literal[", "tuple[")))


def _group_at(root: type[BaseModel], key: KeyPath) -> type[BaseModel]:
    group = root
    for part in key:
        if isinstance(part, str) and part in group.model_fields:
            kind = group.model_fields[part].annotation
            inner = [kind, *getattr(kind, "__args__", ())]
            group = next((t for t in inner if isinstance(t, type) and issubclass(t, BaseModel)), group)
    return group

"""YAML files of users, read within limits: recipes, suites, blend plans, costs.

ruamel's parser gives events; the values are built here, so that nothing else can come of a file than mappings, lists,
texts, numbers, true, false and null (YAML 1.2's core schema; dates are texts). What a file may not hold (tags of a
programming language, aliases that stand within what they name, numbers that no setting can take) is a SettingsError
with file and line, and so is a file beyond the limits, which are far above any recipe's needs.
"""

from __future__ import annotations

import copy
import io
import math
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from manihot.errors import SettingsError
from manihot.settings.kinds import KeyPath, Lines

MOST_BYTES = 500_000  # half a second of parsing; the longest recipe of the package has 6,000
MOST_VALUES = 10_000  # aliases counted as what they stand for
MOST_CHARACTERS = 20_000  # of one text
DEEPEST = 30
LARGEST = 2**63 - 1  # what numpy, torch and JSON readers can take

UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
IN_TEXTS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")  # what escapes such as \x1b bring in
INT = re.compile(r"[-+]?[0-9]+(_[0-9]+)*")
IN_BASE = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(_[0-9]+)*(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
CORE = "tag:yaml.org,2002:"
KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (float, int),
    "bool": (bool,),
    "null": (type(None),),
}
HINTS = (
    ("mapping values are not allowed", "put a text that contains ': ' in quotes"),
    ("'\\t'", "indent with spaces, not tabs"),
    ("<block end>", "indent the keys of one group alike"),
    ("','", "close the bracket, or put a comma between two entries"),
)


def read_yaml(path: str, text: str, what: str = "a recipe") -> tuple[dict[str, Any], Lines]:
    """A file's mapping as plain values, and `file:line` of each key, of the whole under `()`.

    what: the file is called so in errors. Raises SettingsError with file and line.
    """
    reader = _Reader(text, path)
    values = reader.read()
    if values is None:
        values = {}
    if not isinstance(values, dict):
        found = "a list" if isinstance(values, list) else f"{values!r:.40}"
        raise SettingsError(f"{path}: {what} is a mapping of settings, and this is {found}", "write `key: value`")
    return values, {(): f"{path}:1", **dict(reader.notes)}


def read_value(text: str, said: str) -> Any:
    """The value of one line of YAML, as `--set key=VALUE` has it; errors begin with `said`."""
    return _Reader(text, said, numbered=False).read()


def find_yaml(name: str, folder: str, said: str = "") -> tuple[str, str] | None:
    """Path and text of a file, or of a name in the package's `folder`; None where there is neither.

    Raises SettingsError, after the words `said`, for a file that can't be read.
    """
    try:
        if Path(name).is_file():
            return name, read_text(Path(name), said)
        packaged = Path(str(resources.files("manihot") / folder / f"{name}.yaml"))
        if re.fullmatch(r"[\w.-]+", name) and packaged.is_file():
            return str(packaged), read_text(packaged, said)
    except (OSError, ValueError):  # a name that no file can have
        return None
    return None


def read_text(path: Path, said: str = "") -> str:
    """A text file of at most MOST_BYTES; SettingsError, after the words `said`, for another one."""
    try:
        with open(path, "rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise SettingsError(
                f"{said}{path}: larger than {MOST_BYTES:,} bytes, and this kind of file has a few thousand",
                "check that this is the file you meant",
            )
        return data.decode("utf-8-sig")
    except OSError as error:
        raise SettingsError(f"{said}{path}: not readable ({error.strerror})", "check its permissions") from error
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise SettingsError(
            f"{said}{path}:{line}: not readable as text: byte {data[error.start]:#04x} is not UTF-8",
            "save the file as UTF-8",
        ) from error


class _Reader:
    """Values of one YAML text, and where each key and list entry stands."""

    def __init__(self, text: str, name: str, numbered: bool = True) -> None:
        self.text, self.name, self.numbered = text, name, numbered
        self.notes: list[tuple[KeyPath, str]] = []
        self.values = 0
        self.anchors: dict[str, tuple[Any, int, list[tuple[KeyPath, str]]] | None] = {}
        self.line = 1
        self.events = self._events()

    def read(self) -> Any:
        """The one document's value, None for an empty text."""
        wrong = UNPRINTABLE.search(self.text)
        if wrong:
            self.line = self.text.count("\n", 0, wrong.start()) + 1
            self.refuse(f"the character {wrong.group()!r}, which no text file holds", "remove it")
        value, documents = None, 0
        for event in self.events:
            if isinstance(event, DocumentStartEvent):
                documents += 1
                if documents > 1:
                    self.refuse("a second document (---) begins", "keep one")
                if event.version or event.tags:
                    self.refuse("a directive (%YAML, %TAG)", "remove that line")
            elif isinstance(event, (AliasEvent, ScalarEvent, MappingStartEvent, SequenceStartEvent)):
                value = self._value(event, (), 1)
        return value

    def refuse(self, what: str, remedy: str = "check that line") -> NoReturn:
        """SettingsError at the line that is being read."""
        fault = "not valid YAML" if self.numbered else "the value is not YAML"
        raise SettingsError(f"{self._place()}: {fault}: {what}", remedy)

    def _place(self) -> str:
        return f"{self.name}:{self.line}" if self.numbered else self.name

    def _events(self) -> Iterator[Any]:
        parser = YAML(typ="safe", pure=True)
        try:
            for event in parser.parse(io.StringIO(self.text)):
                self.line = event.start_mark.line + 1
                yield event
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            self.line = mark.line + 1 if mark else self.line
            said = " ".join(str(error.problem or error).split())
            self.refuse(said, next((hint for sign, hint in HINTS if sign in said), "check that line"))
        except Exception as error:  # whatever else the parser does on a hostile text, such as \U7FFFFFFF
            self.refuse(" ".join(str(error).split())[:100], "check that line and the next")

    def _value(self, event: Any, key: KeyPath, depth: int) -> Any:
        self._count(1)
        if depth > DEEPEST:
            self.refuse(f"more than {DEEPEST} brackets or levels within each other", "check the brackets")
        if isinstance(event, AliasEvent):
            return self._alias(event.anchor, key)
        if isinstance(event, ScalarEvent):
            value = self._scalar(event)
            if event.anchor:
                self.anchors[event.anchor] = (value, 1, [])
            return value
        first, before = len(self.notes), self.values
        if event.anchor:
            self.anchors[event.anchor] = None  # not finished
        tag = _tag_of(event)
        value = self._mapping(key, depth) if isinstance(event, MappingStartEvent) else self._sequence(key, depth)
        if tag not in ("", "map" if isinstance(value, dict) else "seq"):
            self.refuse(f"the tag {tag!r}", "remove it: settings are mappings, lists, texts and numbers")
        if event.anchor:
            inner = [(path[len(key) :], place) for path, place in self.notes[first:]]
            self.anchors[event.anchor] = (value, self.values - before + 1, inner)
        return value

    def _count(self, more: int) -> None:
        self.values += more
        if self.values > MOST_VALUES:
            self.refuse(f"more than {MOST_VALUES:,} values, aliases counted as what they stand for", "leave some out")

    def _alias(self, name: str, key: KeyPath) -> Any:
        if name not in self.anchors:
            self.refuse(f"the alias *{name} stands before its anchor &{name}, or there is none", "check the name")
        found = self.anchors[name]
        if found is None:
            self.refuse(f"the alias *{name} stands within what it names", "write out what was meant")
        value, size, inner = found
        self._count(size)
        self.notes += [((*key, *path), place) for path, place in inner]
        return copy.deepcopy(value)

    def _sequence(self, key: KeyPath, depth: int) -> list[Any]:
        out: list[Any] = []
        for event in self.events:
            if isinstance(event, SequenceEndEvent):
                break
            self.notes.append(((*key, len(out)), self._place()))
            out.append(self._value(event, (*key, len(out)), depth + 1))
        return out

    def _mapping(self, key: KeyPath, depth: int) -> dict[str, Any]:
        out: dict[str, Any] = {}
        merged: list[tuple[dict[str, Any], list[tuple[KeyPath, str]]]] = []
        for event in self.events:
            if isinstance(event, MappingEndEvent):
                break
            if not isinstance(event, ScalarEvent) or event.anchor or _tag_of(event) not in ("", "str"):
                self.refuse("a key that is no plain word", "write `key: value`, and quote keys with special characters")
            self._count(1)
            name, place = self._checked(event.value), self._place()
            if name == "<<" and event.implicit[0]:
                merged += self._merge(key, depth)
                continue
            if name in out:
                self.refuse(f"the key {name!r} appears twice in one group", "keep one of them")
            self.notes.append(((*key, name), place))
            out[name] = None
            out[name] = self._value(next(self.events), (*key, name), depth + 1)
        for values, notes in merged:  # the group's own keys win, and then the first group that is merged in
            fresh = {name: value for name, value in values.items() if name not in out}
            self.notes += [((*key, *path), place) for path, place in notes if path[0] in fresh]
            out |= fresh
        return out

    def _merge(self, key: KeyPath, depth: int) -> list[tuple[dict[str, Any], list[tuple[KeyPath, str]]]]:
        """The mappings of `<<: *anchor` or `<<: [*one, *other]`, each with where its keys stand."""
        first, above = len(self.notes), len(key) + 1
        value = self._value(next(self.events), (*key, "<<"), depth + 1)
        notes, self.notes[first:] = [(path[above:], place) for path, place in self.notes[first:]], []
        if isinstance(value, dict):
            return [(value, notes)]
        if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
            self.refuse("`<<` merges groups of settings, and this is none", "name an anchor of a group: `<<: *name`")
        of_each: list[list[tuple[KeyPath, str]]] = [[] for _ in value]
        for path, place in notes:
            if len(path) > 1:
                of_each[int(path[0])].append((path[1:], place))
        return list(zip(value, of_each))

    def _checked(self, text: str) -> str:
        """A text without characters that a terminal or a file name can't take."""
        if len(text) > MOST_CHARACTERS:
            self.refuse(f"a text of {len(text):,} characters; {MOST_CHARACTERS:,} are the most", "shorten it")
        wrong = IN_TEXTS.search(text)
        if wrong:
            self.refuse(f"a text with the character {wrong.group()!r}", "remove it")
        return text

    def _scalar(self, event: Any) -> Any:
        text, tag = self._checked(event.value), _tag_of(event)
        if tag not in ("", *KINDS):
            self.refuse(f"the tag {tag!r}", "remove it: settings are mappings, lists, texts and numbers")
        plain = tag != "str" if tag else event.implicit[0] and not event.tag  # `! 12` is a text
        value = self._plain(text) if plain else text
        if tag and not (isinstance(value, KINDS[tag]) and isinstance(value, bool) == (tag == "bool")):
            self.refuse(f"{text[:40]!r} is no {tag}, as its tag says", "remove the tag")
        return float(value) if tag == "float" else value

    def _plain(self, text: str) -> Any:
        """What a text without quotes means."""
        if text in WORDS:
            return WORDS[text]
        if INT.fullmatch(text) or IN_BASE.fullmatch(text):
            value = int(text, 0 if IN_BASE.fullmatch(text) else 10) if len(text) < 100 else LARGEST + 1
            if abs(value) > LARGEST:
                self.refuse(f"the number {text[:20]}... of {len(text)} digits", f"{LARGEST} is the largest")
            return value
        number = float(text) if FLOAT.fullmatch(text) else math.inf if NOT_FINITE.fullmatch(text) else None
        if number is not None and not math.isfinite(number):
            self.refuse(f"{text[:20]} is not a number that a setting can take", "write a finite number")
        return text if number is None else number


def _tag_of(event: Any) -> str:
    """The tag as it is written, without YAML's own prefix; '' where there is none."""
    tag = str(event.tag or "")
    return "" if tag == "!" else tag.removeprefix(CORE)

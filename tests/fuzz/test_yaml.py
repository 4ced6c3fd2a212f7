"""YAML of users: whatever stands in a file, the answer is a value or an error with file and line, within a second."""

from __future__ import annotations

import io
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

import manihot
from manihot.ensemble.plans import load_plan
from manihot.errors import DataError, SettingsError
from manihot.export.advice import read_advice
from manihot.photos.aliases import load_aliases
from manihot.settings import load_recipe
from manihot.settings.yaml_files import DEEPEST, MOST_BYTES, MOST_CHARACTERS, MOST_VALUES, read_value, read_yaml
from manihot.suites.format import load_suite
from manihot.trust.costs import load_costs

READERS: dict[str, Callable[[Path], Any]] = {
    "recipe": load_recipe,
    "suite": load_suite,
    "plan": load_plan,
    "costs": lambda path: load_costs(path, ["healthy", "rust"]),
    "aliases": load_aliases,
    "advice": lambda path: read_advice(path, ("healthy", "rust"), ("en", "sw")),
}
LONGEST = 1.0  # seconds of CPU that a refusal may take
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi")
)
HOSTILE = {  # text, line of the error, words of it
    "aliases": (BOMB, 5, f"more than {MOST_VALUES:,} values"),
    "many values": ("".join(f"k{n}: 1\n" for n in range(30_000)), MOST_VALUES // 2, "more than"),
    "brackets": ("\nseed: " + "[" * 5000, 2, f"more than {DEEPEST}"),
    "levels": ("seed:\n" + "- " * 5000, 2, f"more than {DEEPEST}"),
    "questions": ("\n\n" + "? " * 5000, 3, "no plain word"),
    "large": ("seed: 1\ndescription: " + "x" * 3_000_000, None, f"larger than {MOST_BYTES:,} bytes"),
    "long text": ("seed: 1\ndescription: " + "x y" * 100_000, 2, f"{MOST_CHARACTERS:,} are the most"),
    "digits": ("seed: " + "9" * 5000, 1, "of 5000 digits"),
    "negative digits": ("seed: -" + "9" * 20, 1, "of 21 digits"),
    "hexadecimal digits": ("seed: 0x" + "f" * 17, 1, "of 19 digits"),
    "digits as a key": ("seed: 1\n" + "9" * 5000 + ": 2", 2, ""),
    "a number beyond floats": ("margin: 1e999", 1, "finite"),
    "infinity": ("margin: -.inf", 1, "finite"),
    "no number": ("margin: .nan", 1, "finite"),
    "int of text": ("seed: !!int abc", 1, "'abc' is no int"),
    "bool of text": ("seed: !!bool 1", 1, "'1' is no bool"),
    "int of a list": ("seed: !!int [1]", 1, "the tag 'int'"),
    "a call": ("seed: !!python/object/apply:os.system [ls]", 1, "the tag 'python/object/apply:os.system'"),
    "an object": ("name: !!python/name:os.system ''", 1, "the tag"),
    "binary": ("name: !!binary aGk=", 1, "the tag 'binary'"),
    "a set": ("seed: !!set {a, b}", 1, "the tag 'set'"),
    "a tag of one's own": ("seed: !mine 1", 1, "the tag '!mine'"),
    "merged into itself": ("train: &t\n  <<: *t\n  epochs: 1", 2, "*t stands within what it names"),
    "a list within itself": ("train: &t [*t]", 1, "*t stands within what it names"),
    "no anchor": ("seed: 1\ntrain: *t", 2, "no"),
    "a merged number": ("seed: 1\ntrain: {<<: 3}", 2, "`<<` merges groups"),
    "a merged list": ("seed: 1\ntrain: {<<: [{a: 1}, 2]}", 2, "`<<` merges groups"),
    "a list as a key": ("seed: 1\n[1, 2]: 3", 2, "no plain word"),
    "a group as a key": ("seed: 1\n? {a: 1}\n: 3", 2, "no plain word"),
    "one key twice": ("seed: 1\ntrain: {epochs: 1}\nseed: 2", 3, "'seed' appears twice"),
    "documents": ("seed: 1\n---\nseed: 2", 2, "second document"),
    "directive": ("%YAML 1.1\n---\nseed: 1", None, "directive"),
    "NUL": ("seed: 1\nname: a\0b", 2, "'\\x00'"),
    "escaped NUL": ('seed: 1\nname: "a\\0b"', 2, "'\\x00'"),
    "terminal escape": ('name: "\\x1b[2J"', 1, "'\\x1b'"),
    "half a character": ('name: "\\ud800"', 1, "'\\ud800'"),
    "beyond Unicode": ('seed: 1\nname: "\\U7fffffff"', None, "not valid YAML"),
    "tab": ("train:\n\tepochs: 1", 2, "indent with spaces"),
    "an open bracket": ("seed: 1\ntrain: [1, 2\n", 3, "not valid YAML"),
    "a colon in a text": ("seed: 1\ndescription: a: b", 2, "in quotes"),
}


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_yaml_is_refused_with_file_and_line(tmp_path: Path, kind: str, case: str):
    text, line, words = HOSTILE[case]
    path = tmp_path / "mine.yaml"
    path.write_bytes(text.encode("utf-8"))
    begun = time.process_time()
    with pytest.raises(SettingsError if words else (SettingsError, DataError)) as caught:
        READERS[kind](path)
    assert time.process_time() - begun < LONGEST
    said = str(caught.value)
    assert str(path) in said and words in said and caught.value.remedy
    assert len(said) < 2000
    if line is not None and words:
        assert f"{path}:{line}: " in said


@pytest.mark.parametrize("text", [b"\xff\xfe\x00", b"seed: 1\nname: caf\xe9"])
@pytest.mark.parametrize("kind", READERS)
def test_what_is_no_text_is_refused(tmp_path: Path, kind: str, text: bytes):
    path = tmp_path / "mine.yaml"
    path.write_bytes(text)
    with pytest.raises(SettingsError, match=rf"mine.yaml:{text.count(10) + 1}: not readable as text"):
        READERS[kind](path)


def test_dates_and_words_of_older_yaml_are_texts():
    values, _ = read_yaml("x", "a: 2001-99-99\nb: 2020-01-02\nc: yes\nd: no\ne: 1:30\nf: 0o17\ng: 010\nh: =\n1: ~\n")
    assert values == {
        "a": "2001-99-99",
        "b": "2020-01-02",
        "c": "yes",
        "d": "no",
        "e": "1:30",
        "f": 15,
        "g": 10,
        "h": "=",
        "1": None,
    }


def test_merged_groups_keep_the_nearest_value_and_its_line():
    text = "low: &low {a: 1, b: {c: 1}}\nmid: &mid\n  a: 2\nmine:\n  <<: [*mid, *low]\n  d: 4\nown: {a: 0, <<: *low}\n"
    values, lines = read_yaml("x", text)
    assert values["mine"] == {"a": 2, "b": {"c": 1}, "d": 4} and values["own"] == {"a": 0, "b": {"c": 1}}
    assert lines["mine", "a"] == "x:3" and lines["mine", "b", "c"] == "x:1" and lines["own", "a"] == "x:7"
    values["mine"]["b"]["c"] = 9
    assert values["low"]["b"]["c"] == 1  # an alias is a copy


def test_a_value_of_set_is_read_like_a_file():
    assert read_value("[1, a, {b: null}]", "--set x") == [1, "a", {"b": None}]
    with pytest.raises(SettingsError, match=r"^--set x: the value is not YAML: the alias \*a"):
        read_value("*a", "--set x")


def resolved(node: Any) -> Any:
    """Keys as texts, as our reader has them."""
    if isinstance(node, dict):
        return {str(key): resolved(value) for key, value in node.items()}
    return [resolved(value) for value in node] if isinstance(node, list) else node


@pytest.mark.parametrize("path", sorted(Path(manihot.__file__).parent.rglob("*.yaml")), ids=lambda path: path.stem)
def test_files_of_the_package_read_as_ruamel_reads_them(path: Path):
    text = path.read_text(encoding="utf-8")
    values, lines = read_yaml(str(path), text)
    assert values == resolved(YAML(typ="safe", pure=True).load(text))
    written = text.splitlines()
    for key, place in lines.items():
        if key and isinstance(key[-1], str):
            assert key[-1] in written[int(place.rpartition(":")[2]) - 1]


plain = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=20)
whole = st.integers(-(2**63) + 1, 2**63 - 1)
leaves = st.none() | st.booleans() | whole | st.floats(allow_nan=False, allow_infinity=False) | plain
trees = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(plain, inner, max_size=4), max_leaves=12
)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(st.dictionaries(plain, trees, max_size=4))
def test_what_ruamel_writes_is_read_back(tree: dict[str, Any]):
    out = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.dump(tree, out)
    assert read_yaml("x", out.getvalue())[0] == tree


SEEDS = [path.read_text(encoding="utf-8") for path in sorted(Path(manihot.__file__).parent.rglob("*.yaml"))]
SEEDS += [text for text, _, _ in HOSTILE.values() if len(text) < 3000]
PIECES = [
    "[",
    "]",
    "{",
    "}",
    ": ",
    "- ",
    "? ",
    "&a ",
    "*a",
    "<<: *a",
    "!!int ",
    "!!python/none ",
    "!",
    "|\n",
    ">-\n",
    "'",
    '"',
    "\t",
    "\n",
    "\n  ",
    "#",
    "---\n",
    "...\n",
    "%YAML 1.2\n",
    "~",
    ".nan",
    "1e999",
    "9" * 400,
    "\\x00",
    "\x00",
    "\ud7ff",
    "name: ",
    "members: ",
    "extends: ",
    "arms: ",
    "base: ",
    "stages: ",
    "missed: ",
    "costs: ",
    "weights: ",
    "null",
    "true",
]
TRIED = 800  # mutated files of each kind, where --fuzz-inputs names no number


def mutated(seed: int) -> str:
    """A file of the package or a hostile one with pieces cut out, put in, moved and repeated."""
    chance = random.Random(seed)
    text = chance.choice(SEEDS)
    start = chance.randrange(max(1, len(text) - 800))
    text = text[start if chance.random() < 0.3 else 0 :][:1500]
    for _ in range(chance.randint(1, 6)):
        at, end = sorted(chance.randrange(len(text) + 1) for _ in range(2))
        end = min(end, at + chance.choice([0, 1, 3, 40]))
        piece = chance.choice(PIECES)
        put = [piece, text[at : at + 30], "", piece * chance.randint(1, 60)]
        text = text[:at] + chance.choice(put) + text[end:]
    return text


@pytest.mark.parametrize("kind", READERS)
def test_mutated_files_give_a_value_or_an_error_of_ours(tmp_path: Path, kind: str, fuzz_inputs: int):
    path, refused = tmp_path / "mine.yaml", 0
    tried = fuzz_inputs or TRIED
    for seed in range(tried):
        text = mutated(seed * len(READERS) + list(READERS).index(kind))
        path.write_bytes(text.encode("utf-8", "replace"))
        begun = time.process_time()
        try:
            READERS[kind](path)
        except (SettingsError, DataError) as error:
            assert re.search(r"mine\.yaml|recipes|plans", str(error)), text
            refused += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r} of\n{text}") from error
        assert time.process_time() - begun < LONGEST, text
    assert refused > tried / 2


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(key=st.text(max_size=30), value=st.text(max_size=30) | trees.map(repr))
def test_any_set_gives_a_recipe_or_an_error_of_ours(key: str, value: str):
    try:
        load_recipe("standard", [f"{key}={value}", f"train.{key}={value}"])
    except SettingsError as error:
        assert "--set" in str(error)

"""A competition's submission: written exactly as its sample submission is, and compared with it.

The sample decides the header, the ids, their order, and whether classes go by names, by numbers, or in one column of
probabilities each. Without a sample: `image_id,label`, the file names, and classes as the user's table has them.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from manihot.errors import DataError
from manihot.records.files import write_atomic
from manihot.records.predictions import Predictions
from manihot.records.tables import decode_text, list_names, read_table, shown

WHOLE = re.compile(r"-?[0-9]{1,15}")
HEADER = ("image_id", "label")
MOST_SAID = 3  # examples in a sentence


@dataclass(frozen=True)
class Sample:
    """A sample submission: its column names, the ids in their order, and the cells beside them, text (N, columns)."""

    path: Path
    header: tuple[str, ...]
    ids: tuple[str, ...]
    cells: np.ndarray

    @classmethod
    def load(cls, path: Path) -> Sample:
        """Read it; DataError where it is no table of at least two columns, or names an id twice."""
        frame = read_table(Path(path))
        if len(frame.columns) < 2:
            raise DataError(
                f"{path}: one column ({list_names(list(frame.columns))}), and a submission has ids and answers",
                "give the sample submission as the competition offers it",
            )
        ids = frame.iloc[:, 0]
        twice = ids[ids.duplicated()]
        if len(twice):
            raise DataError(
                f"{path}, line {twice.index[0]}: the id {shown(twice.iloc[0])!r} appears twice", "name each id once"
            )
        return cls(Path(path), tuple(frame.columns), tuple(ids), frame.iloc[:, 1:].to_numpy(dtype=object))

    @property
    def numbered(self) -> bool:
        """Whether its answers are whole numbers."""
        cells = [cell for cell in self.cells[:, 0] if cell]
        return bool(cells) and all(WHOLE.fullmatch(cell) for cell in cells)


@dataclass(frozen=True)
class Answers:
    """What is answered of each photograph: probabilities (N, K) or a class alone, with its names.

    paths: the file of each, '' where it is not known. best: place in `classes` (N,). numbers: the user's number of
    each class, None where classes go by names.
    """

    ids: list[str]
    paths: list[str]
    best: np.ndarray
    probs: np.ndarray
    classes: tuple[str, ...]
    numbers: tuple[int, ...] | None

    @classmethod
    def of(cls, predictions: Predictions, paths: Mapping[str, str], also: Mapping[str, int]) -> Answers:
        """From predictions, and the class of further photographs, which have none, by their ids.

        paths: the file of each id, '/' between folders, where it is known.
        """
        ids = [*predictions.image_id, *also]
        further = np.array(list(also.values()), dtype=np.int64)
        k = len(predictions.classes)
        unnamed = predictions.classes == tuple(f"c{number}" for number in range(k))
        return cls(
            list(map(str, ids)),
            [paths.get(name, "") for name in ids],
            np.concatenate([predictions.logits.argmax(axis=1).astype(np.int64), further]),
            np.concatenate([predictions.pred_probs.reshape(-1, k), np.eye(k, dtype=np.float32)[further]]),
            predictions.classes,
            tuple(range(k)) if unnamed and predictions.numbers is None else predictions.numbers,
        )


def _names_of(path: str) -> list[str]:
    """b.jpg, a/b.jpg, b, a/b of a path a/b.jpg: the shortest first, with the ending first."""
    parts = path.split("/")
    ends = ["/".join(parts[k:]) for k in range(len(parts) - 1, -1, -1)] if path else []
    return [*ends, *(end.rpartition(".")[0] for end in ends if "." in end.rsplit("/", 1)[-1])]


def save_submission(
    predictions: Predictions,
    path: Path,
    also: Mapping[str, int] | None = None,
    paths: Mapping[str, str] | None = None,
    sample: Sample | None = None,
    otherwise: int | None = None,
) -> list[str]:
    """Write a submission as CSV, atomically; remarks about it.

    also: the place in `classes` of what is said of photographs that have no prediction, by their ids. paths: the file
    of each id. otherwise: the class of ids that the sample asks for and no photograph answers.
    Raises DataError where the sample can't be followed.
    """
    answers = Answers.of(predictions, paths or {}, also or {})
    if sample is None:
        numbered = answers.numbers is not None
        rows = [[name, _name(answers, int(k), numbered)] for name, k in zip(_short_ids(answers), answers.best)]
        _write(path, HEADER, rows)
        return []
    at, remarks = _match(sample, answers)
    if otherwise is None and None in at:
        missing = [name for name, row in zip(sample.ids, at) if row is None]
        raise DataError(
            f"{sample.path}: asks for {len(missing)} photographs that were not predicted, first {shown(missing[0])!r}",
            "predict the competition's test photographs, all of them",
        )
    if len(sample.header) == 2:
        numbered = _goes_by_number(sample, answers)
        places = [otherwise if row is None else int(answers.best[row]) for row in at]
        cells = [[_name(answers, place, numbered)] for place in places]
    else:
        order = _columns(sample, answers)
        empty = np.eye(len(answers.classes))[otherwise or 0]
        cells = [[f"{p:.6g}" for p in (empty if row is None else answers.probs[row])[order]] for row in at]
    _write(path, sample.header, [[name, *row] for name, row in zip(sample.ids, cells)])
    return remarks


def _match(sample: Sample, answers: Answers) -> tuple[list[int | None], list[str]]:
    """The answer of each id of the sample, None where there is none; remarks."""
    by_name: dict[str, list[int]] = {}
    for k, (own, path) in enumerate(zip(answers.ids, answers.paths)):
        for name in dict.fromkeys([own, *_names_of(path)]):
            by_name.setdefault(name, []).append(k)
    found: list[int | None] = []
    for name in sample.ids:
        rows = by_name.get(name.replace("\\", "/").removeprefix("./"), [])
        exact = [k for k in rows if answers.ids[k] == name]
        if len(exact or rows) > 1:
            files = [answers.paths[k] or answers.ids[k] for k in rows]
            raise DataError(
                f"{sample.path}: the id {shown(name)!r} fits {len(rows)} photographs: {list_names(files, MOST_SAID)}",
                "predict the folder of the test photographs alone",
            )
        found.append((exact or rows)[0] if rows else None)
    remarks = []
    if missing := [name for name, row in zip(sample.ids, found) if row is None]:
        remarks.append(f"{len(missing)} ids of {sample.path.name} have no photograph: {list_names(missing, MOST_SAID)}")
    if left := len(answers.ids) - len({row for row in found if row is not None}):
        remarks.append(f"{left} photographs that {sample.path.name} does not ask for are left out")
    return found, remarks


def asks_for(sample: Sample, paths: Sequence[str]) -> int:
    """How many of the photographs a sample asks for, by their file names."""
    ids = set(sample.ids)
    return sum(not ids.isdisjoint(_names_of(path)) for path in paths)


def _goes_by_number(sample: Sample, answers: Answers) -> bool:
    """Whether the answers are numbers, as in the sample; DataError where classes have none."""
    whole = all(WHOLE.fullmatch(name) for name in answers.classes)
    given = {cell for cell in sample.cells[:, 0] if cell}
    if not given:
        return answers.numbers is not None
    if not sample.numbered:
        if whole and answers.numbers is None:
            raise DataError(
                f"{sample.path}: its column {shown(sample.header[1])!r} holds {list_names(sorted(given), MOST_SAID)}, "
                f"but the classes are {list_names(answers.classes)}",
                "say what the numbers mean with --classes MAP.json when you scan or run",
            )
        if not given & set(answers.classes) and all(_is_number(cell) for cell in given):
            raise DataError(
                f"{sample.path}: its column {shown(sample.header[1])!r} holds numbers such as {shown(min(given))}, "
                "which are not classes",
                "write the submission from a CSV of probabilities: --out new.csv",
            )
        return False
    if whole or given <= set(answers.classes):
        return False  # the names themselves are numbers
    if answers.numbers is None:
        raise DataError(
            f"{sample.path}: its column {shown(sample.header[1])!r} holds numbers, but the classes are names without "
            f"numbers: {list_names(answers.classes)}",
            "say which number each class has with --classes MAP.json when you scan or run",
        )
    return True


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _is_finite(cell: str) -> bool:
    return _is_number(cell) and bool(np.isfinite(float(cell)))


def _columns(sample: Sample, answers: Answers) -> list[int]:
    """The class that each column of the sample is of; DataError where they are other ones."""
    wanted = sample.header[1:]
    kinds = [answers.classes, tuple(f"c{k}" for k in range(len(answers.classes)))]
    if answers.numbers is not None:
        kinds.append(tuple(map(str, answers.numbers)))
    for names in kinds:
        if set(names) == set(wanted):
            return [names.index(name) for name in wanted]
    raise DataError(
        f"{sample.path}: its columns {list_names(wanted)} are not the classes {list_names(answers.classes)}",
        "train on the competition's classes, or rename the columns",
    )


def _short_ids(answers: Answers) -> list[str]:
    """Each photograph's file name, or more of its path where two are alike; an id that is no part of its path stays."""
    parts = [path.split("/") for path in answers.paths]
    short = [name.rsplit("/", 1)[-1] == own[-1] for name, own in zip(answers.ids, parts)]
    lengths = [1] * len(parts)
    for _ in range(max(map(len, parts), default=0)):
        ids = ["/".join(own[-n:]) if cut else name for name, own, cut, n in zip(answers.ids, parts, short, lengths)]
        count = Counter(ids)
        if len(count) == len(ids):
            return ids
        lengths = [n + (count[name] > 1) for n, name in zip(lengths, ids)]
    return answers.ids


def _name(answers: Answers, place: int | None, numbered: bool) -> str:
    assert place is not None
    return str(answers.numbers[place]) if numbered and answers.numbers is not None else answers.classes[place]


def _write(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_atomic(Path(path), text.getvalue())


# ------------------------------------------------------------------------------------------ checking


def check_submission(file: Path, sample: Path) -> list[str]:
    """What is wrong with a submission, held against its sample, in sentences; [] where nothing is. DataError."""
    wanted, given = Sample.load(sample), read_table(Path(file))
    said = []
    first = [decode_text(path, Path(path).read_bytes()).lstrip().splitlines()[0] for path in map(Path, (file, sample))]
    if tuple(given.columns) != wanted.header:
        said.append(f"header: {list_names(list(given.columns))}; the sample's is {list_names(wanted.header)}")
    elif first[0].strip() != first[1].strip():
        said.append(f"first line: {shown(first[0].strip())}; the sample's is {shown(first[1].strip())}")
    ids = given.iloc[:, 0]
    said += _compare_ids(list(ids), list(given.index), wanted)
    if len(given.columns) != len(wanted.header):
        return said
    several = len(wanted.header) > 2
    for k, name in enumerate(given.columns[1:]):
        said += _compare_cells(given[name].tolist(), list(given.index), name, wanted.cells[:, k], several)
    return said


def _compare_ids(ids: list[str], lines: list[int], wanted: Sample) -> list[str]:
    said = []
    count, asked = Counter(ids), set(wanted.ids)
    if len(ids) != len(wanted.ids):
        said.append(f"rows: {len(ids)}; the sample has {len(wanted.ids)}")
    if twice := [name for name, n in count.items() if n > 1]:
        said.append(f"{len(twice)} ids appear more than once: {list_names(twice, MOST_SAID)}")
    missing, extra = [name for name in wanted.ids if name not in count], [name for name in count if name not in asked]
    if missing:
        said.append(f"{len(missing)} ids of the sample are missing: {list_names(missing, MOST_SAID)}")
    if extra:
        said.append(f"{len(extra)} ids are not in the sample: {list_names(extra, MOST_SAID)}")
        ends = [{end for name in names for end in _names_of(name.replace("\\", "/"))} for names in (missing, extra)]
        if ends[0] & ends[1]:
            said.append("they differ in the folder or the ending of the file name")
    if not missing and not extra and not twice and ids != list(wanted.ids):
        at = next(k for k, (a, b) in enumerate(zip(ids, wanted.ids)) if a != b)
        said.append(f"order: line {lines[at]} is {shown(ids[at])!r}; the sample has {shown(wanted.ids[at])!r} there")
    return said


def _compare_cells(cells: list[str], lines: list[int], name: str, sample: np.ndarray, probabilities: bool) -> list[str]:
    if empty := [line for line, cell in zip(lines, cells) if not cell]:
        return [f"column {shown(name)!r}: {len(empty)} empty cells, first in line {empty[0]}"]
    filled = [cell for cell in sample if cell]
    if not filled:
        return []
    if probabilities or (all(map(_is_number, filled)) and not all(map(WHOLE.fullmatch, filled))):
        kind, wrong = "a finite number", [k for k, cell in enumerate(cells) if not _is_finite(cell)]
    elif all(map(WHOLE.fullmatch, filled)):
        kind, wrong = "a whole number", [k for k, cell in enumerate(cells) if not WHOLE.fullmatch(cell)]
    else:
        kind, wrong = "a name", [k for k, cell in enumerate(cells) if _is_number(cell) and cell not in filled]
    if not wrong:
        return []
    first = f"first {shown(cells[wrong[0]])!r} in line {lines[wrong[0]]}"
    return [f"column {shown(name)!r}: {len(wrong)} cells are not {kind} as in the sample, {first}"]

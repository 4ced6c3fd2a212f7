"""Phrases that a native reader stumbles over don't come back: each with what to write instead."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
KINDS = (".py", ".md", ".html", ".j2", ".yaml", ".js", ".css")
TEXTS = [
    *(path for path in ROOT.glob("*.md") if path.name != "CHANGELOG.md"),
    *(path for room in ("docs", "src/manihot") for path in sorted((ROOT / room).rglob("*")) if path.suffix in KINDS),
]
UNIT = "photographs?|class|fold|member|step|batch|epoch|pixel|row|view|plant"
RATE = (
    rf"\b(one|rows?|columns?|numbers?|weights?|seconds|[\d.]+ (ms|s|MB)) a ({UNIT})\b(?! (of|that|is|takes|has|gets))"
)
BANNED = {
    RATE: "per",
    r"\banew\b": "again, or a verb with re-",
    r"\b(is|are|be) told (apart )?by\b|\bis told\b": "is recognised by, is reported",
    r"\blook(s|ed)? (once|twice)\b|\ba (second|first) look\b": "embeds, sees, is searched",
    r"\bhas a say\b|\bword holds\b": "is rejected, the first matching rule wins",
    r"\bstands? (twice|in it twice)\b": "appears twice",
    r"\bsomething else than\b": "something other than",
    r"\bwritten over\b(?! its foot)": "overwritten",
    r"\b(by|learns? .{0,30}) heart\b": "memorise",
    r"\bLesson\b|\bstrangers\b(?! ?(on|'))": "training labels, out-of-distribution photographs",
    r"\bhold(s)? the truth\b": "contain the true class",
    r"\bgoes with errors\b": "correlates with errors",
    r"\bmoved from what\b": "drifted from the training data",
    r"\bis no (number|score|share|probability)\b": "is not a",
}


@pytest.mark.core
@pytest.mark.parametrize("phrase", BANNED)
def test_a_phrase_does_not_come_back(phrase: str):
    pattern, found = re.compile(phrase), []
    for path in TEXTS:
        lines = enumerate(path.read_text(encoding="utf-8").split("\n"), 1)
        found += [f"{path.relative_to(ROOT)}:{n}: {match[0]!r}" for n, line in lines if (match := pattern.search(line))]
    assert not found, f"write: {BANNED[phrase]}\n" + "\n".join(found)


def test_the_pattern_of_rates_finds_one():
    assert re.search(RATE, "12 ms a photograph") and not re.search(RATE, "it opens a photograph")

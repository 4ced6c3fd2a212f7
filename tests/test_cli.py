"""The command line: help, messages and exit codes, as a user sees them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from manihot.cli import app
from manihot.errors import DataError, SettingsError, WeightsError

VERBS = [name for name in app if not name.startswith("-")]


def manihot(*words: str | Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "manihot.cli", *map(str, words)], capture_output=True, text=True)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture):
    app([verb, "--help"], exit_on_error=False, result_action="return_value")
    text = capsys.readouterr().out
    assert verb in text
    assert len(text.splitlines()) > 4


def test_a_wrong_setting_is_named_with_file_line_and_suggestion(small_photos: Path, tmp_path: Path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("extends: quick\n\ntrain: {epoch: 3}\n", encoding="utf-8")
    found = manihot("run", small_photos, "--out", tmp_path / "out", "--recipe", recipe)
    assert found.returncode == SettingsError.exit_code
    assert "mine.yaml:3" in found.stderr
    assert "train.epoch" in found.stderr
    assert "'epochs'" in found.stderr
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("loss: {name: focall}", "focal"),
        ("augment: [{name: rotatee}]", "rotate"),
        ("mixing: [{name: cutmixx}]", "cutmix"),
        ("optimizer: {name: adamq}", "adam"),
        ("schedule: {name: cosin}", "cosine"),
        ("averaging: {name: emma}", "ema"),
        ("tta: [{name: ful}]", "full"),
        ("model: {pooling: avgg}", "avg"),
    ],
)
def test_a_wrong_technique_is_found_before_anything_is_read(change: str, named: str, tmp_path: Path):
    from manihot.pipeline import run

    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"extends: standard\n{change}\n", encoding="utf-8")
    with pytest.raises(SettingsError) as error:
        run(tmp_path / "no photographs", tmp_path / "out", str(recipe))
    assert f"{recipe}:2" in str(error.value)
    assert named in str(error.value)
    assert not (tmp_path / "out").exists()


def test_no_photographs_is_a_clear_error(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    found = manihot("run", tmp_path / "empty", "--out", tmp_path / "out", "--recipe", "quick")
    assert found.returncode == DataError.exit_code
    assert "Traceback" not in found.stderr


def test_no_model_is_a_clear_error(small_photos: Path, tmp_path: Path):
    found = manihot("predict", tmp_path, small_photos, "--out", tmp_path / "p.csv")
    assert found.returncode == WeightsError.exit_code
    assert "no trained model" in found.stderr


def test_an_unreachable_hub_names_the_remedies_and_is_never_silently_random(
    small_photos: Path, tmp_path: Path, monkeypatch
):
    import timm

    from manihot.train.networks.pretrained import make_backbone

    def refuse(*args, pretrained=False, **more):
        if pretrained:
            raise OSError("no route to host")
        raise AssertionError("random weights were made")

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(WeightsError) as error:
        make_backbone("resnet18", True, (64, 64))
    for remedy in ("embedded", "file of weights", "pretrained: false"):
        assert remedy in error.value.remedy


def test_recipes_are_listed_and_shown():
    assert "standard" in manihot("recipes").stderr + manihot("recipes").stdout
    shown = manihot("recipes", "show", "quick", "--set", "seed=7")
    assert "seed: 7" in shown.stdout


def test_blend_stack_and_calibrate_work_on_csv_files_without_torch(tmp_path: Path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 120)
    for name in "ab":
        probs = rng.dirichlet([1, 1, 1], 120) + 2 * np.eye(3)[labels]
        table = pd.DataFrame(probs / probs.sum(1, keepdims=True), columns=["c0", "c1", "c2"])
        table.insert(0, "label", labels)
        table.insert(0, "image_id", [f"{i}.jpg" for i in range(120)])
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    a, b = tmp_path / "a.csv", tmp_path / "b.csv"
    code = (
        "import sys; sys.argv[1:] = {words!r}\nfrom manihot.cli import main\n"
        "try:\n    main()\nfinally:\n    assert 'torch' not in sys.modules"
    )
    for words, left in (
        (["blend", a, b, "--out", tmp_path / "blend"], "blend/blend.json"),
        (["stack", a, b, "--out", tmp_path / "stack"], "stack/stack.json"),
        (["calibrate", a, "--out", tmp_path / "trust"], "trust/trust.json"),
    ):
        script = code.format(words=[str(w) for w in words])
        found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert found.returncode == 0, found.stderr
        assert (tmp_path / left).is_file()


HEAVY = (
    "torch",
    "torchvision",
    "timm",
    "onnx",
    "onnxruntime",
    "matplotlib",
    "sklearn",
    "scipy",
    "pandas",
    "pyarrow",
    "cv2",
)


def loaded(code: str) -> set[str]:
    """Of the packages that take long to load, those that `code` has loaded."""
    code = f"import sys; {code}; print(*({{name.partition('.')[0] for name in sys.modules}} & {set(HEAVY)!r}))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_the_command_line_starts_light():
    assert loaded("import manihot.cli, manihot.cli.show") == set()
    assert loaded("import manihot; manihot.run, manihot.blend, manihot.TableOptions, manihot.Recipe") == set()
    help_of_run = "from manihot.cli import app; app(['run', '--help'], result_action='return_value')"
    assert (
        loaded(f"import io; usual, sys.stdout = sys.stdout, io.StringIO(); {help_of_run}; sys.stdout = usual") == set()
    )
    assert loaded("import pandas") >= {"pandas"}  # so that the sets can be anything but empty


def test_verbs_on_recipes_load_nothing_heavy():
    code = "import io; from manihot.cli import answer; usual, sys.stdout = sys.stdout, io.StringIO(); answer({!r}); "
    for words in (["recipes"], ["recipes", "show", "quick"], ["suite", "lecture-ablations", "--list"]):
        assert loaded(code.format(words) + "sys.stdout = usual") == set(), words

"""Suites: the format, verdicts on predictions made up with known effects, and a small suite end to end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from conftest import TINY_RECIPE
from manihot.cli import answer, app
from manihot.errors import DataError, SettingsError
from manihot.members.training_labels import find_doubtful
from manihot.records.predictions import Predictions
from manihot.report.suite_page import draw_suite, make_suite_page
from manihot.suites.format import Arm, Head, load_suite, suite_names
from manihot.suites.run import COLUMNS, run_suite, summary
from manihot.suites.verdicts import Effect, bootstrap, compare_pairs, holm, judge, sign_flip
from manihot.train.check import check_recipe

ROOT = Path(__file__).resolve().parents[1]
ARMS = """description: a few arms
base: {extends: tiny.yaml}
arms:
  baseline:
  plain: {set: {mixing: []}, verdict: better, reported: 0.01, said: it helped, table: Mixing}
  again: {set: {seed: 1}, chance: true, verdict: no change}
  once: {of: baseline, set: {tta: [{name: full}]}, verdict: worse}
  cleaned: {set: {labels: {name: oof, of: baseline, rule: cleanlab, do: drop}}, verdict: worse}
  hub: {set: {model: {pretrained: true}}, needs: weights from a hub}
  more: {second: all}
"""


def write_suite(folder: Path, text: str) -> Path:
    (folder / "tiny.yaml").write_text(TINY_RECIPE, encoding="utf-8")
    path = folder / "suite.yaml"
    path.write_text(text, encoding="utf-8")
    return path


# ------------------------------------------------------------------------------------------------- format


@pytest.mark.parametrize("name", suite_names())
def test_packaged_suites_load_and_every_technique_in_them_exists(name: str):
    suite = load_suite(name)
    check_recipe(suite.recipe)
    check_recipe(load_suite(name, second="2019", second_but=["CMD"]).recipe)
    assert len(suite.arms) > (40 if name == "lecture-ablations" else 10)
    for arm in suite.arms.values():
        assert arm.verdict == "not reported" or arm.said, "a verdict needs the words of the report"


def test_overrides_change_every_arm():
    suite = load_suite("lecture-ablations", ["train.epochs=3", "photo.size=[512, 512]"])
    for name, recipe in suite.recipe.member_recipes().items():
        assert recipe.train.epochs == 3
        own = {"vit": (384, 384), "botnet": (256, 256)}  # sizes that a backbone's weights are for
        assert recipe.photo.size == own.get(name.partition("-")[0], (512, 512))


def test_what_the_lecture_tried_or_wished_without_a_figure_has_an_arm():
    suite = load_suite("lecture-ablations", second="2019")
    recipes = suite.recipe.member_recipes()
    base = recipes["baseline"]
    assert base.schedule.settings["warmup"] > 0 and recipes["no-warmup"].schedule.settings == {"warmup": 0}
    late, whole = recipes["simple-then-mixup"].mixing, recipes["mixup"].mixing
    assert {one.name for one in late} == {one.name for one in whole} == {"mixup", "fmix"}
    assert {one.settings["from_epoch"] for one in late} == {base.train.epochs // 2}
    before, last = recipes["pseudo-epoch"].stage_recipes()
    assert before.resolved() == {**base.resolved(), "stages": []}
    assert (last.labels.name, last.labels.settings["test"], last.train.epochs) == ("pseudo", True, 1)
    cleaned = recipes["second-oof-drop"]
    assert cleaned.labels.settings["among"] == "others" and cleaned.sources["2019"].use == "train"
    assert suite.arms["second-oof-drop"].against == "second-all" and base.sources["2019"].use == "ignore"
    assert recipes["botnet"].model.backbone == "botnet26t_256.c1_in1k"
    chosen, skipped = suite.choose()
    assert {"no-warmup", "mixup", "simple-then-mixup", "second-oof-drop"} <= set(chosen)
    assert "photographs without a label" in skipped["pseudo-epoch"] and "hub" in skipped["botnet"]


def test_arms_that_look_again_differ_in_views_alone():
    suite = load_suite("lecture-ablations")
    recipes = suite.recipe.member_recipes()
    for name, arm in suite.arms.items():
        if arm.of:
            mine, theirs = recipes[name].resolved(), recipes[arm.of].resolved()
            assert {key for key in mine if mine[key] != theirs[key]} == {"tta"}


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("verdict: better", "verdict: good", 5, "arms.plain.verdict"),
        ("said: it", "sayd: it", 5, "did you mean 'said'"),
        ("{mixing: []}", "{mixin: []}", 5, "did you mean 'mixing'"),
        ("{seed: 1}", "{folds: {n: 3}}", 6, "can't set 'folds'"),
        ("of: baseline, set: {tta", "of: base, set: {tta", 7, "did you mean 'baseline'"),
        ("of: baseline, set: {tta: [{name: full}]}", "of: baseline, set: {seed: 3}", 7, "only set 'tta'"),
        ("set: {mixing: []}", "against: pain", 5, "there is no arm 'pain'"),
        ("  baseline:\n", "  basis:\n", 3, "no arm is called 'baseline'"),
        ("extends: tiny.yaml", "extends: tinny", 2, "there is no recipe 'tinny'"),
        ("base: {extends: tiny.yaml}", "base: {extends: tiny.yaml, seed: x}", 2, "seed"),
        ("description: a", "descriptoin: a", 1, "did you mean 'description'"),
        ("arms:\n", "arms: [\n", None, "not valid YAML"),
    ],
)
def test_errors_name_file_line_and_remedy(tmp_path, old, new, line, words):
    assert ARMS.count(old) >= 1
    path = write_suite(tmp_path, ARMS.replace(old, new, 1))
    with pytest.raises(SettingsError) as error:
        load_suite(path)
    assert words in str(error.value)
    assert str(path.name) in str(error.value)
    if line:
        assert f"{path.name}:{line}" in str(error.value)


def test_only_takes_what_an_arm_needs_along(tmp_path):
    suite = load_suite(write_suite(tmp_path, ARMS))
    chosen, skipped = suite.choose()
    assert chosen == ["baseline", "plain", "again", "once", "cleaned"]
    assert "weights from a hub" in skipped["hub"] and "--second" in skipped["more"]
    assert suite.choose(["hub"])[0] == ["baseline", "hub"]
    assert load_suite("lecture-ablations").choose(["vit-b16-adamp"])[0] == ["baseline", "vit-b16", "vit-b16-adamp"]
    with pytest.raises(SettingsError, match="no second source"):
        suite.choose(["more"])
    with pytest.raises(SettingsError, match="did you mean 'plain'"):
        suite.choose(["plian"])


def test_a_second_source_is_trained_on_by_its_arms_alone(tmp_path):
    text = ARMS + "  part: {second: some}\n"
    suite = load_suite(write_suite(tmp_path, text), second="2019", second_but=["red"])
    uses = {name: recipe.sources["2019"] for name, recipe in suite.recipe.member_recipes().items()}
    assert {name for name, use in uses.items() if use.use == "train"} == {"more", "part"}
    assert uses["part"].but == ("red",) and uses["more"].but == ()
    assert suite.recipe.sources["2019"].use == "train"
    bare = load_suite(write_suite(tmp_path, text), second="2019")
    assert "--second-but" in bare.choose()[1]["part"]


def test_the_page_on_suites_explains_every_key():
    words = (ROOT / "docs/suites.md").read_text(encoding="utf-8")
    for key in [*Arm.model_fields, *Head.model_fields]:
        assert f"| `{key}` |" in words, key


# ------------------------------------------------------------------------------------------------- verdicts


def made_up(right: np.ndarray, labels: np.ndarray, classes: int = 3) -> Predictions:
    """Predictions that are right where `right` says so."""
    rng = np.random.default_rng(1)
    said = np.where(right, labels, (labels + rng.integers(1, classes, len(labels))) % classes)
    logits = np.where(np.eye(classes)[said] > 0, 2.0, 0.0).astype(np.float32)
    ids = np.array([f"p{i}" for i in range(len(labels))], dtype=object)
    return Predictions(ids, logits, tuple("abc"), labels, np.zeros(len(labels), dtype=int))


def effect_of(gains: np.ndarray, groups: np.ndarray | None = None) -> Effect:
    """A baseline that is right on 70 %, and an arm that gains as told where that is possible."""
    labels = np.arange(len(gains)) % 3
    base = gains <= 0
    predictions = {"arm": made_up(base + gains > 0, labels), "baseline": made_up(base, labels)}
    return compare_pairs(predictions, [("arm", "baseline")], groups)[0]


def test_a_planted_effect_is_found_and_judged_by_what_was_reported():
    gains = np.r_[np.ones(60), -np.ones(10), np.zeros(930)]
    effect = effect_of(gains)
    assert effect.difference == pytest.approx(0.05) and 0.03 < effect.low < 0.05 < effect.high < 0.07
    assert effect.p < 0.001 and effect.n == 1000 and effect.units == 1000
    assert effect.log_loss == pytest.approx(-2.0 * 0.05) and effect.log_loss_high < 0
    told = {verdict: judge(verdict, effect, 0.01) for verdict in ("better", "worse", "no change", "no better")}
    assert told == {"better": "agrees", "worse": "contradicts", "no change": "contradicts", "no better": "contradicts"}
    assert judge("not reported", effect, 0.01) == ""
    worse = effect_of(-gains)
    assert judge("worse", worse, 0.01) == judge("no better", worse, 0.01) == "agrees"
    assert judge("better", worse, 0.01) == "contradicts"


def test_identical_arms_cannot_tell_but_confirm_that_nothing_changes():
    effect = effect_of(np.zeros(200))
    assert (effect.difference, effect.low, effect.high, effect.p) == (0, 0, 0, 1)
    assert judge("better", effect, 0.01) == judge("worse", effect, 0.01) == "cannot tell"
    assert judge("no change", effect, 0.01) == "agrees"


def test_a_wide_interval_does_not_confirm_that_nothing_changes():
    effect = effect_of(np.r_[np.ones(20), -np.ones(20), np.zeros(160)])
    assert effect.difference == 0 and effect.low < -0.02
    assert judge("no change", effect, 0.01) == judge("no better", effect, 0.01) == "cannot tell"


def test_four_photographs_are_no_evidence():
    effect = effect_of(np.r_[np.ones(4), np.zeros(41)])
    assert effect.low > 0  # the bootstrap alone would claim it
    assert judge("better", effect, 0.01) == "cannot tell"
    assert effect.p == pytest.approx(2 * 0.5**4, abs=0.02)


@pytest.mark.parametrize(("more", "less"), [(9, 2), (30, 14), (3, 3)])
def test_the_sign_flip_is_mcnemars_exact_test(more: int, less: int):
    gains = np.r_[np.ones(more), -np.ones(less), np.zeros(50)]
    wanted = binomtest(more, more + less).pvalue
    assert sign_flip(gains, np.arange(len(gains))) == pytest.approx(wanted, abs=0.015)


def test_copies_count_once():
    gains = np.repeat(np.r_[np.ones(12), -np.ones(6), np.zeros(62)], 5)
    groups = np.array([f"g{i // 5}" for i in range(len(gains))], dtype=object)
    alone, together = effect_of(gains), effect_of(gains, groups)
    assert together.units == 80 and alone.difference == together.difference
    assert together.high - together.low > 2 * (alone.high - alone.low)
    assert judge("better", alone, 0.01) == "agrees" and judge("better", together, 0.01) == "cannot tell"


def test_the_bootstrap_by_kinds_is_that_of_photographs():
    rng = np.random.default_rng(3)
    gains, units = rng.choice([-1.0, 0.0, 1.0], 120, p=[0.1, 0.7, 0.2]), np.repeat(np.arange(60), 2)
    sums = np.bincount(units, gains)
    draws = rng.integers(0, 60, (20_000, 60))
    wanted = np.quantile(sums[draws].sum(1) / 120, [0.025, 0.975])
    np.testing.assert_allclose(bootstrap(gains, units, repeats=20_000), wanted, atol=0.01)


def test_claims_are_rarer_than_their_level_where_nothing_differs():
    rng = np.random.default_rng(0)
    claims = 0
    for trial in range(200):
        gains = np.where(rng.random(300) < 0.08, rng.choice([-1.0, 1.0], 300), 0.0)
        low, high = bootstrap(gains, np.arange(300), 1000, seed=trial)
        claims += (low > 0 or high < 0) and sign_flip(gains, np.arange(300), 1000, seed=trial) <= 0.05
    assert claims <= 19  # of 200: 5 % and three standard errors


def test_holm_corrects_for_the_number_of_arms():
    assert holm(np.array([0.01, 0.04, 0.03])).tolist() == pytest.approx([0.03, 0.06, 0.06])
    assert holm(np.array([0.9, 0.8])).tolist() == [1.0, 1.0]
    gains = np.r_[np.ones(14), -np.ones(3), np.zeros(283)]
    labels = np.arange(300) % 3
    rng = np.random.default_rng(0)
    predictions = {"baseline": made_up(gains <= 0, labels), "real": made_up((gains <= 0) + gains > 0, labels)}
    for number in range(39):
        turned = rng.permutation(np.r_[np.ones(9), -np.ones(9), np.zeros(282)])
        predictions[f"null{number}"] = made_up(np.where(turned != 0, turned > 0, gains <= 0), labels)
    one = compare_pairs(predictions, [("real", "baseline")])[0]
    many = compare_pairs(predictions, [(name, "baseline") for name in predictions if name != "baseline"])[0]
    assert one.holm == one.p == many.p < 0.05
    assert many.holm > 0.05


def test_doubtful_labels_by_both_rules():
    rng = np.random.default_rng(0)
    label = np.arange(120) % 3
    probs = np.full((120, 3), 0.04)
    probs[np.arange(120), label] = 0.92
    wrong = rng.choice(120, 9, replace=False)
    given = label.copy()
    given[wrong] = (label[wrong] + 1) % 3
    probs[5] = np.nan
    wanted = set(wrong.tolist()) - {5}
    assert set(np.flatnonzero(find_doubtful(given, probs))) == wanted
    assert set(np.flatnonzero(find_doubtful(given, probs, "cleanlab"))) == wanted
    assert find_doubtful(given, probs, above=0.95).sum() == 0
    for rule in ("confident", "cleanlab"):
        few = find_doubtful(given, probs, rule, worst=4)
        assert few.sum() == 4 and set(np.flatnonzero(few)) <= wanted
        assert set(given[find_doubtful(given, probs, rule, classes=(1,))]) <= {1}


# ------------------------------------------------------------------------------------------------- end to end


@pytest.fixture(scope="module")
def finished(small_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, pd.DataFrame]:
    folder = tmp_path_factory.mktemp("suite")
    path = write_suite(folder, ARMS)
    table = run_suite(path, small_photos, folder / "out", only=["plain", "once"], overrides=FAST, workers=1)
    return path, folder / "out", table


FAST = ["train.epochs=1"]


def stages(out: Path) -> dict[str, float]:
    record = json.loads((out / "run.json").read_text(encoding="utf-8"))
    return {name: stage["started"] for name, stage in record["stages"].items()}


def test_a_suite_leaves_tables_a_picture_and_a_page(finished):
    _, out, table = finished
    assert list(table.columns) == COLUMNS
    rows = table.set_index("arm")
    assert rows.loc[["baseline", "plain", "once"], "status"].tolist() == ["done"] * 3
    assert rows.loc["cleaned", "why"] == "not asked for"
    assert rows.loc["plain", "photographs"] == 45 and -1 <= rows.loc["plain", "difference"] <= 1
    saved = pd.read_csv(out / "suite.csv").set_index("arm")
    assert saved.loc["plain", "difference"] == pytest.approx(rows.loc["plain", "difference"])
    assert (out / "suite.png").read_bytes()[:4] == b"\x89PNG"
    page = (out / "suite.html").read_text(encoding="utf-8")
    assert "plain" in page and "it helped" in page and 'src="http' not in page and "45 held-out photographs" in page
    assert not (out / "members/once/fold0/best.safetensors").exists()


def test_looking_again_is_what_the_network_says_in_those_views(finished):
    from manihot.infer.forward import forward_views, merge_views
    from manihot.photos.store import PhotoStore
    from manihot.records.manifest import Manifest
    from manihot.settings import View
    from manihot.train.networks.checkpoint import load_network
    from manihot.train.runners import TorchRunner, choose_device

    _, out, _ = finished
    found = Predictions.load(out / "predictions/once.oof.parquet")
    manifest = Manifest.load(out / "folds.parquet")
    network, card = load_network(out / "members/baseline/fold0/best.safetensors")
    rows = np.flatnonzero(manifest.fold == 0)
    store = PhotoStore.open(next((out / "store").glob("*.npy")))
    runner = TorchRunner(network, card.preprocess, choose_device("cpu"))
    wanted = merge_views(forward_views([runner], store, rows, card.preprocess, (View(),)), (View(),))
    np.testing.assert_allclose(found.logits[found.fold == 0], wanted, atol=1e-5)


def test_more_arms_join_and_nothing_is_trained_twice(finished, small_photos):
    path, out, _ = finished
    before = stages(out)
    table = run_suite(path, small_photos, out, only=["cleaned", "again"], overrides=FAST, workers=1).set_index("arm")
    assert table.loc[["baseline", "plain", "again", "once", "cleaned"], "status"].tolist() == ["done"] * 5
    after = stages(out)
    assert {name: after[name] for name in before} == before
    assert {name.split("/")[1] for name in set(after) - set(before)} == {"cleaned", "again"}
    assert table.loc["plain", "beyond_chance"] in (True, False)
    said = " ".join(summary(table.reset_index()))
    assert "Of 3 verdicts" in said and "3 arms were compared" in said and "another seed" in said


def test_arms_trained_with_other_settings_are_not_compared(finished, small_photos):
    path, out, _ = finished
    sets = [*FAST, "model.dropout=0.3"]
    table = run_suite(path, small_photos, out, only=["plain"], overrides=sets, workers=1, update=True).set_index("arm")
    assert table.loc["plain", "status"] == "done" and table.loc["cleaned", "status"] == "not run"


def test_an_arm_that_fails_is_named_and_the_others_go_on(small_photos, tmp_path):
    text = ARMS.split("  plain")[0] + (
        "  lost: {set: {model: {pretrained: ./nowhere.safetensors}}, table: T}\n"
        "  after: {set: {labels: {name: oof, of: lost}}}\n"
        "  seed: {set: {seed: 1}, verdict: no change}\n"
    )
    path = write_suite(tmp_path, text)
    table = run_suite(path, small_photos, tmp_path / "out", overrides=FAST, workers=1).set_index("arm")
    assert table["status"].tolist() == ["done", "failed", "failed", "done"]
    assert "nowhere" in table.loc["lost", "why"] and "'lost'" in table.loc["after", "why"]
    assert "nowhere" in (tmp_path / "out/suite.html").read_text(encoding="utf-8")


def test_one_fold_alone_leaves_out_arms_that_need_answers_for_all(small_photos, tmp_path):
    path = write_suite(tmp_path, ARMS)
    sets = [*FAST, "folds.only=[0]"]
    table = run_suite(path, small_photos, tmp_path / "out", only=["cleaned"], overrides=sets, workers=1)
    rows = table.set_index("arm")
    assert rows.loc["baseline", "status"] == "done" and "out-of-fold" in rows.loc["cleaned", "why"]
    with pytest.raises(DataError, match="held out"):
        run_suite(path, small_photos, tmp_path / "two", only=["plain"], overrides=["folds.kind=none"], workers=1)


def test_the_picture_and_page_take_any_suite(tmp_path):
    def arm(name: str, **known) -> dict:
        return dict.fromkeys(COLUMNS) | {"arm": name, "against": "baseline", "chance": False, "judgement": ""} | known

    shown = {
        "difference": 0.02,
        "low": -0.3,
        "high": 0.9,
        "p": 0.01,
        "holm": 0.02,
        "table": "<b>T</b>",
        "verdict": "better",
        "reported": 0.5,
        "said": "",
        "change": "x: 1",
        "photographs": 1200,
        "judgement": "agrees",
        "log_loss_difference": 0.1,
        "log_loss_low": 0.0,
        "log_loss_high": 0.2,
        "status": "done",
    }
    found = {
        "name": "s",
        "description": "",
        "source": "",
        "level": 0.95,
        "margin": 0.01,
        "units": None,
        "summary": ["nothing"],
        "base": {"seed": 0},
        "photos": [],
        "device": "",
        "arms": [],
    }
    bare = arm("baseline", verdict="not reported", change="", said="")
    for arms in ([], [bare], [bare, arm("a", **shown), arm("$b$", **shown)]):
        (tmp_path / "suite.json").write_text(json.dumps({**found, "arms": arms}), encoding="utf-8")
        page = make_suite_page(tmp_path).read_text(encoding="utf-8")
        assert "<b>T</b>" not in page
        first = (tmp_path / "suite.png").read_bytes()
        draw_suite({**found, "arms": arms}, tmp_path / "again.png")
        assert (tmp_path / "again.png").read_bytes() == first


def test_the_command_lists_and_asks_for_what_it_needs(capsys):
    assert answer(["suite", "lecture-ablations", "--list"]) == 0
    assert "five-crop" in capsys.readouterr().out
    with pytest.raises(SettingsError, match="photographs and a folder"):
        app(["suite", "lecture-ablations"], exit_on_error=False, result_action="return_value")

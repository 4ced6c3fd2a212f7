"""Class shares, unknown photographs and drift: laws, oracles, and figures on resampled real predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from scipy.special import softmax

from conftest import shared_data
from manihot.errors import DataError, SettingsError
from manihot.records.predictions import Predictions
from manihot.trust.drift import EXIT_MOVED, EXIT_SAME, EXIT_TOO_FEW, compare_embeddings, watch_predictions
from manihot.trust.priors import count_prior, estimate_prior, fit_prior_bbse, fit_prior_em, probe_shares, reweight
from manihot.trust.unknown import (
    KINDS,
    UnknownDetector,
    auroc,
    fit_clouds,
    fit_threshold,
    fit_unknown,
    score_energy,
    score_knn,
    score_max_logit,
)
from test_trust_calibration import make_probs

NAMES = ("cbb", "cbsd", "cgm", "cmd", "healthy")


# priors


def test_probes_give_the_shares_back() -> None:
    scores = {"cbb": 0.05, "cbsd": 0.10, "cgm": 0.11, "cmd": 0.62}
    table = probe_shares(scores, NAMES, photographs=4650, digits=3)
    assert table["share"].tolist() == pytest.approx([0.05, 0.10, 0.11, 0.62, 0.12])
    assert table["probed"].tolist() == [True] * 4 + [False]
    assert table["error"].iloc[3] == pytest.approx(np.sqrt(0.62 * 0.38 / 4650) + 0.0005)
    assert ((table["low"] < table["share"]) & (table["share"] < table["high"])).all()
    nothing = probe_shares({"a": 0.0}, ("a", "b"), 100)
    assert nothing["high"].iloc[0] > 0.02


def test_probes_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    truth, inside = np.array([0.1, 0.3, 0.6]), []
    for _ in range(400):
        seen = rng.multinomial(500, truth) / 500
        table = probe_shares({"a": seen[0], "b": seen[1]}, ("a", "b", "c"), 500)
        inside.append((table["low"] <= truth) & (truth <= table["high"]))
    assert np.mean(inside, axis=0) == pytest.approx(0.95, abs=0.04)


@pytest.mark.parametrize("scores", [{"a": 0.7, "b": 0.6}, {"a": 0.5}, {"a": 1.2, "b": -0.2}, {"z": 0.1, "a": 0.2}])
def test_probes_that_can_t_be_are_refused(scores: dict[str, float]) -> None:
    with pytest.raises(DataError, match="probes"):
        probe_shares(scores, ("a", "b", "c"), 100)


@given(seed=st.integers(0, 500))
@settings(max_examples=20, deadline=None)
def test_laws_of_reweighting(seed: int) -> None:
    rng = np.random.default_rng(seed)
    probs, _ = make_probs(seed, 50)
    old, new = rng.dirichlet(np.ones(4)), rng.dirichlet(np.ones(4))
    moved = reweight(probs, old, new)
    assert moved.sum(axis=1) == pytest.approx(np.ones(50))
    assert reweight(moved, new, old) == pytest.approx(probs, abs=1e-6)
    assert reweight(probs, old, old) == pytest.approx(probs)
    classes = rng.permutation(4)
    assert reweight(probs[:, classes], old[classes], new[classes]) == pytest.approx(moved[:, classes])


def test_em_finds_the_likeliest_shares() -> None:
    """At the answer, no small step along the simplex makes the photographs likelier."""
    probs, _ = make_probs(0, 400)
    old = np.array([0.4, 0.3, 0.2, 0.1])
    found = fit_prior_em(probs, old, tolerance=1e-10)
    likelihood = lambda prior: np.log((probs / old * prior).sum(axis=1)).mean()  # noqa: E731
    for step in np.random.default_rng(0).normal(0, 0.01, (50, 4)):
        other = np.abs(found + step)
        assert likelihood(other / other.sum()) <= likelihood(found) + 1e-9


def test_bbse_is_exact_where_predictions_follow_the_confusion() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 100)
    probs = rng.dirichlet([0.5, 0.5, 0.5], 300) * 0.5 + 0.5 * np.eye(3)[labels]
    shares = [0.5, 0.3, 0.2]
    rows = np.concatenate([np.tile(np.flatnonzero(labels == c), int(10 * s)) for c, s in enumerate(shares)])
    for soft in (True, False):
        assert fit_prior_bbse(probs, labels, probs[rows], soft) == pytest.approx(shares, abs=1e-4)


@pytest.mark.parametrize("method", ["em", "bbse"])
def test_real_shares_are_found_within_two_points(method: str) -> None:
    real = Predictions.load(shared_data("cassava/oof_blend_14th.csv"))
    probs, labels = real.pred_probs, real.labels
    rng = np.random.default_rng(0)
    errors, naive = [], []
    for _ in range(12):
        order = rng.permutation(len(labels))
        fit, pool = order[: len(order) // 2], order[len(order) // 2 :]
        truth = rng.dirichlet(np.full(5, 1.5))
        drawn = rng.choice(5, 2000, p=truth)
        rows = np.concatenate([rng.choice(pool[labels[pool] == c], (drawn == c).sum()) for c in range(5)])
        found = estimate_prior(probs[fit], labels[fit], probs[rows], method).prior
        errors.append(np.abs(found - truth).mean())
        naive.append(np.abs(np.bincount(probs[rows].argmax(axis=1), minlength=5) / 2000 - truth).mean())
    assert np.mean(errors) < 0.02
    assert np.mean(errors) < 0.5 * np.mean(naive)


def test_reweighting_to_a_new_district_helps_real_predictions() -> None:
    real = Predictions.load(shared_data("cassava/oof_blend_14th.csv"))
    rng = np.random.default_rng(1)
    even = np.concatenate([rng.choice(np.flatnonzero(real.labels == c), 1000) for c in range(5)])
    probs, labels = real.pred_probs, real.labels
    moved = reweight(probs[even], count_prior(labels, 5), estimate_prior(probs, labels, probs[even]).prior)
    before = (probs[even].argmax(axis=1) == labels[even]).mean()
    assert (moved.argmax(axis=1) == labels[even]).mean() > before + 0.01


def test_share_intervals_hold_the_truth() -> None:
    probs, labels = make_probs(0, 3000)
    new, new_labels = make_probs(1, 500)
    found = estimate_prior(probs, labels, new, "bbse", draws=60)
    truth = count_prior(new_labels, 4)
    assert ((found.low - 0.02 < truth) & (truth < found.high + 0.02)).all()
    assert (found.low <= found.prior).all()
    with pytest.raises(DataError, match="one of: em, bbse"):
        estimate_prior(probs, labels, new, "bbe")


# unknown photographs


def make_embeddings(seed: int, n: int = 300, away: float = 0.0) -> Predictions:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    centres = 6 * np.eye(3, 16)
    embeddings = centres[labels] + rng.normal(size=(n, 16))
    embeddings[:, 5] += away
    logits = (embeddings[:, :3] * (0.2 if away else 1.0)).astype(np.float32)
    ids = np.array([f"{seed}-{i}" for i in range(n)], dtype=object)
    return Predictions(ids, logits, ("a", "b", "unknown"), labels, np.full(n, -1), embeddings.astype(np.float32))


def test_auroc_agrees_with_scikit_learn() -> None:
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    known, strange = rng.integers(0, 10, 200), rng.integers(4, 14, 90)
    oracle = roc_auc_score(np.r_[np.zeros(200), np.ones(90)], np.r_[known, strange])
    assert auroc(known, strange) == pytest.approx(oracle)


def test_scores_follow_their_definitions() -> None:
    rng = np.random.default_rng(0)
    logits = 5 * rng.normal(size=(40, 4))
    assert score_energy(logits) == pytest.approx(-np.log(np.exp(logits).sum(axis=1)))
    assert score_max_logit(logits) == pytest.approx(-logits.max(axis=1))
    known, new = rng.normal(size=(1500, 8)), rng.normal(size=(70, 8))
    unit = lambda e: e / np.linalg.norm(e, axis=1, keepdims=True)  # noqa: E731
    assert score_knn(known, new, 7) == pytest.approx(np.sort(cdist(unit(new), unit(known)), axis=1)[:, 6], abs=1e-4)
    labels = rng.integers(0, 3, 1500)
    clouds = fit_clouds(known, labels)
    by_hand = [cdist(new, [m], "mahalanobis", VI=clouds.precision)[:, 0] ** 2 for m in clouds.means]
    assert clouds.distance(new) == pytest.approx(np.min(by_hand, axis=0))
    for score in (score_energy, score_max_logit):
        with pytest.raises(DataError, match="logarithms of probabilities"):
            score(np.log(softmax(logits, axis=1)))


def test_known_photographs_are_rejected_as_rarely_as_asked() -> None:
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(300):
        threshold = fit_threshold(rng.normal(size=150), 0.1)
        rates.append((rng.normal(size=150) > threshold).mean())
    assert np.mean(rates) == pytest.approx(0.1, abs=0.01)
    assert fit_threshold(np.arange(9.0), 0.1) == 8.0
    assert np.isinf(fit_threshold(np.arange(8.0), 0.1))


@pytest.mark.parametrize("kind", KINDS)
def test_detectors_tell_strange_photographs_and_survive_saving(kind: str, tmp_path: Path) -> None:
    known, fresh = make_embeddings(0, 500), make_embeddings(1, 400)
    strange = make_embeddings(2, 200, away=9.0)
    if kind == "output":
        strange.logits[:, 2] += 20
        fresh = fresh.take(fresh.labels != 2)
    detector = fit_unknown(kind, known, false_rejection=0.1)
    assert auroc(detector.score(fresh), detector.score(strange)) > 0.9
    assert detector.is_unknown(fresh).mean() == pytest.approx(0.1, abs=0.06)
    detector.save(tmp_path / "unknown.npz")
    again = UnknownDetector.load(tmp_path / "unknown.npz")
    assert np.array_equal(again.is_unknown(strange), detector.is_unknown(strange))


def test_detectors_name_what_is_missing(tmp_path: Path) -> None:
    known = make_embeddings(0, 60)
    bare = Predictions(known.image_id, known.logits, known.classes, known.labels, known.fold)
    with pytest.raises(DataError, match="no embeddings"):
        fit_unknown("knn", bare)
    with pytest.raises(DataError, match="no class 'other'"):
        fit_unknown("output", bare, unknown_class="other")
    with pytest.raises(SettingsError, match="energi"):
        fit_unknown("energi", bare)
    (tmp_path / "x.npz").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"x\.npz"):
        UnknownDetector.load(tmp_path / "x.npz")


# drift


def make_predictions(
    seed: int, n: int, prior: np.ndarray | None = None, shift: float = 0.0, blur: float = 1.0
) -> Predictions:
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, n, p=prior)
    logits = (2.5 * np.eye(3)[labels] + rng.normal(size=(n, 3))) * blur
    embeddings = rng.normal(size=(n, 40)) + shift + 0.5 * np.eye(3, 40)[labels]
    ids = np.array([f"{seed}-{i}" for i in range(n)], dtype=object)
    return Predictions(
        ids, logits.astype(np.float32), tuple("abc"), labels, np.zeros(n, int), embeddings.astype(np.float32)
    )


def test_nothing_moves_between_photographs_of_one_kind() -> None:
    reference = make_predictions(0, 1500)
    reports = [watch_predictions(reference, make_predictions(seed, 250)) for seed in range(1, 16)]
    assert {report.verdict for report in reports} == {"same"}
    assert {report.exit_code for report in reports} == {EXIT_SAME}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"shift": 0.4}, "input"),
        ({"prior": np.array([0.7, 0.2, 0.1])}, "prediction mix"),
        ({"blur": 0.4}, "confidence"),
    ],
)
def test_each_question_answers_its_own_movement(change: dict[str, object], what: str) -> None:
    report = watch_predictions(make_predictions(0, 1500), make_predictions(1, 300, **change))  # type: ignore[arg-type]
    assert report.verdict == "moved"
    assert report.exit_code == EXIT_MOVED
    assert report.table.set_index("what").loc[what, "moved"]
    assert what in report.sentence()
    if what == "prediction mix":
        assert report.shares["estimated_now"].to_numpy() == pytest.approx([0.7, 0.2, 0.1], abs=0.08)
    if what == "confidence":
        assert report.expected_accuracy < report.known_accuracy - 0.1


def test_many_unknown_photographs_are_a_movement() -> None:
    known, fresh, strange = (make_embeddings(0, 500), make_embeddings(1, 150), make_embeddings(2, 150, away=9.0))
    detector = fit_unknown("mahalanobis", known)
    for new, moved in ((fresh, False), (strange, True)):
        table = watch_predictions(known, new, detector).table.set_index("what")
        assert table.loc["unknown", "moved"] == moved


def test_a_handful_of_photographs_tells_nothing() -> None:
    report = watch_predictions(make_predictions(0, 300), make_predictions(1, 12, shift=5.0))
    assert report.exit_code == EXIT_TOO_FEW
    assert "too few" in report.sentence()


def test_two_sample_test_keeps_its_promise() -> None:
    rng = np.random.default_rng(0)
    p_values = [compare_embeddings(rng.normal(size=(80, 6)), rng.normal(size=(80, 6)), s)[1] for s in range(60)]
    assert np.mean(np.array(p_values) < 0.1) < 0.22
    assert compare_embeddings(rng.normal(size=(80, 6)), 1 + rng.normal(size=(80, 6)))[0] > 0.9


def test_what_can_t_be_compared_is_refused() -> None:
    assert watch_predictions(make_predictions(0, 400), make_predictions(1, 200, shift=0.5)).exit_code == EXIT_MOVED
    with pytest.raises(DataError, match="this model was fitted on 24 photographs; watch needs at least 30"):
        watch_predictions(make_predictions(0, 24), make_predictions(1, 200))
    other = make_predictions(2, 100)
    renamed = Predictions(other.image_id, other.logits, tuple("abd"), other.labels, other.fold)
    with pytest.raises(DataError, match="not the model's a, b, c"):
        watch_predictions(make_predictions(0, 100), renamed)

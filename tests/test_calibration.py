"""Calibration: nonsense is refused in a sentence, intervals hold what they promise, and strangers are noticed."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit

from deepfake_nb.evaluation.calibration import (
    decision_for,
    fit_media_calibration,
    read_calibrations,
    write_calibrations,
)
from deepfake_nb.evaluation.decisions import threshold_for
from deepfake_nb.evaluation.out_of_distribution import (
    COARSE,
    FACE_SIZE,
    STATISTICS,
    face_statistics,
    fit_out_of_distribution,
    read_out_of_distribution,
)
from deepfake_nb.study.files import InputError, UsageError


def predictions(people, rng, detectors=("loud",), slope=2.0, copies=1):
    """Each person has a genuine and a forged video; the true log-odds of a file are twice its signal."""
    signal = np.repeat(rng.normal([-1, 1], size=(people, 2)), copies, axis=1)
    label = np.repeat([[0, 1]], copies, axis=1).repeat(people, axis=0)
    person = np.repeat(np.arange(people), 2 * copies)
    noise = [0.0, *rng.normal(size=len(detectors))]
    parts = [
        pd.DataFrame({
            "media_id": [f"{number}" for number in range(signal.size)], "label": label.ravel(),
            "score": expit(slope * signal.ravel() + shift), "detector": name, "kind": "video", "person": person.astype(str),
        })
        for name, shift in zip(detectors, noise, strict=False)
    ]  # fmt: skip
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="module")
def calibration():
    return fit_media_calibration(predictions(40, np.random.default_rng(0), ("loud", "shy")), draws=30)


# --- what it is fitted on ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda t: t.drop(columns="person"), "no column 'person'"),
        (lambda t: t.assign(kind=["picture", "video"] * (len(t) // 2)), "of images or of videos"),
        (lambda t: t.assign(kind="sound"), "of images or of videos, not of sound"),
        (lambda t: t.assign(split=["train", "val"] * (len(t) // 2)), "some rows are of train"),
        (lambda t: pd.concat([t, t.tail(1)]), "two scores of one detector"),
        (lambda t: t[t.label == 0], "Only 0 people have fake media"),
        (lambda t: t[t.person.isin(list("0123"))], "Only 4 people have genuine media"),
        (lambda t: t.assign(score=1 - t.score), "no higher scores than the genuine"),
        (lambda t: t.assign(score=t.score * 7), "not between 0 and 1"),
        (lambda t: t.iloc[:0], "not of nothing"),
    ],
)
def test_a_table_that_cannot_be_calibrated_on_is_refused(spoil, words):
    table = predictions(12, np.random.default_rng(0))
    with pytest.raises(InputError, match=words):
        fit_media_calibration(spoil(table), draws=5)


def test_options_out_of_range_are_refused(calibration):
    table = predictions(12, np.random.default_rng(0), tuple("abcde"))
    with pytest.raises(UsageError, match="At most 4 detectors"):
        fit_media_calibration(table, draws=2)
    with pytest.raises(UsageError, match="prior share"):
        fit_media_calibration(table, prior=1.0)
    for rate in (0, 1, -0.1, float("nan")):
        with pytest.raises(UsageError, match="false-alarm rate is"):
            calibration.threshold(["loud"], rate)


def test_media_without_a_score_of_one_detector_still_count_for_the_other():
    table = predictions(30, np.random.default_rng(0), ("loud", "shy"))
    table = table[(table.detector == "loud") | (table.person.astype(int) < 15)]
    found = fit_media_calibration(table, draws=5)
    counts = {name: sum(map(len, one.genuine)) for name, one in found.combinations.items()}
    assert counts == {"loud": 30, "shy": 15, "loud + shy": 15} and found.n == 60


# --- what it says ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_interval_holds_the_true_probability_about_as_often_as_it_says():
    held, widths = [], []
    for seed in range(30):
        found = fit_media_calibration(predictions(50, np.random.default_rng(seed)), draws=60)
        for signal in (-0.8, 0.0, 0.8):
            said = found.probability({"loud": expit(2 * signal)})
            held.append(said.low <= expit(2 * signal) <= said.high)
            widths.append(said.high - said.low)
    assert np.mean(held) > 0.82, np.mean(held)
    assert np.mean(widths) < 0.45, "an interval of everything holds the truth, too"


def test_more_files_of_the_same_people_do_not_narrow_the_interval():
    few, many = (
        fit_media_calibration(predictions(40, np.random.default_rng(3), copies=copies), draws=100)
        for copies in (1, 6)
    )
    width = [said.high - said.low for said in (one.probability({"loud": 0.4}) for one in (few, many))]
    assert width[1] == pytest.approx(width[0], rel=0.35) and many.n == 6 * few.n


def test_the_order_in_which_detectors_are_named_does_not_matter(calibration):
    forward, backward = {"loud": 0.9, "shy": 0.4}, {"shy": 0.4, "loud": 0.9}
    assert calibration.score(forward) == calibration.score(backward)
    assert calibration.probability(forward) == calibration.probability(backward)
    assert calibration.threshold(["shy", "loud"]) == calibration.threshold(["loud", "shy"])
    swapped = {"loud": 0.4, "shy": 0.9}
    assert calibration.score(forward) != calibration.score(swapped), "the names are not heeded"


def test_scores_at_the_ends_give_numbers(calibration):
    for score in (0.0, 1.0):
        said = calibration.probability({"loud": score, "shy": score})
        assert np.isfinite(said).all() and 0 <= said.low <= said.value <= said.high <= 1


def test_equal_scores_of_all_genuine_media_lie_below_the_threshold():
    found = threshold_for([[0.5]] * 30, 0.05)
    assert found.score > 0.5 and found.rate == 0.05
    assert threshold_for([[1.0]] * 30, 0.05).score > 1, "a score of 1 that genuine media have is no alarm"


def test_a_person_with_many_files_counts_once():
    noisy = [[0.9] * 50] + [[score] for score in np.linspace(0.1, 0.5, 39)]
    assert threshold_for(noisy, 0.05).score < 0.6
    assert threshold_for([[score] for person in noisy for score in person], 0.05).score > 0.8


@pytest.mark.parametrize("weights", [{"loud": "1" * 64}, {"bold": None}, {"loud": None, "bold": None}])
def test_other_weights_and_unknown_detectors_do_not_fit(calibration, weights):
    assert calibration.misfit(weights) and not calibration.misfit({"loud": None, "shy": None})


# --- two thresholds, and what re-encoding does to them -----------------------------------------------------------


def test_the_lower_threshold_keeps_to_its_miss_rate():
    missed, alarms, called_real = [], [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        found = fit_media_calibration(predictions(60, rng), draws=2).decision(["loud"], 0.05, 0.1)
        new = predictions(400, rng)
        genuine, forged = (new.score[new.label == label] for label in (0, 1))
        assert found.real_below <= found.fake_from and 0 < found.real_below < 1
        missed.append(np.mean(forged < found.real_below))
        alarms.append(np.mean(genuine >= found.fake_from))
        called_real.append(np.mean(genuine < found.real_below))
    assert 0.06 < np.mean(missed) < 0.12 and np.mean(alarms) < 0.065, (np.mean(missed), np.mean(alarms))
    assert np.mean(called_real) > 0.3, "a threshold that calls nothing real keeps to any rate"
    assert f"Below {found.real_below:.2f} is called real" in found.words


def test_where_classes_lie_apart_nothing_is_left_undecided():
    table = predictions(40, np.random.default_rng(0))
    apart = table.assign(score=np.where(table.label == 1, 0.8, 0.2) + 0.1 * (table.score - 0.5))
    found = fit_media_calibration(apart, draws=2).decision(["loud"])
    assert found.real_below == found.fake_from < 0.3


def versions_of(table, change):
    """A ladder of one detector: each file as it is, and re-encoded with its log-odds changed."""
    plain = table[["media_id", "label", "person"]].assign(version="original", loud=table.score)
    return pd.concat([plain, plain.assign(version="crf 40", loud=expit(logit(table.score) + change))])


def test_a_ladder_gives_a_spread_and_a_margin_and_both_are_heeded():
    table = predictions(60, np.random.default_rng(1))
    plain = fit_media_calibration(table, draws=40)
    laddered = fit_media_calibration(table, draws=40, ladder=versions_of(table, 2.5))
    found = laddered.combinations["loud"]
    assert found.wobble == pytest.approx(2.5, abs=1e-2) and 0 < found.margin <= 2.5
    before, after = (one.decision(["loud"]) for one in (plain, laddered))
    assert logit(after.fake_from) == pytest.approx(logit(before.fake_from) + found.margin, abs=1e-6)
    assert after.real_below == before.real_below
    assert f"{after.fake_from:.2f} and above is called fake" in after.words and after.rate == before.rate
    genuine = table[table.label == 0]
    turned = (genuine.score < after.real_below) & (expit(logit(genuine.score) + 2.5) >= after.fake_from)
    assert turned.mean() <= 0.03
    widths = [said.high - said.low for said in (one.probability({"loud": 0.4}) for one in (plain, laddered))]
    values = [one.probability({"loud": 0.4}).value for one in (plain, laddered)]
    assert widths[1] > 1.3 * widths[0] and values[0] == values[1]


def test_a_ladder_that_changes_nothing_leaves_everything_as_it_is():
    table = predictions(30, np.random.default_rng(2))
    plain = fit_media_calibration(table, draws=10)
    same = fit_media_calibration(table, draws=10, ladder=versions_of(table, 0.0))
    assert (same.combinations["loud"].wobble, same.combinations["loud"].margin) == (0, 0)
    assert same.decision(["loud"]) == plain.decision(["loud"])
    assert same.probability({"loud": 0.6}) == plain.probability({"loud": 0.6})


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda t: t.drop(columns="version"), "no column 'version'"),
        (lambda t: t.drop(columns="loud"), "no column 'loud'"),
        (lambda t: t[t.version == "original"], "no version of a media file beside"),
        (lambda t: pd.concat([t, t]), "two versions 'original'"),
    ],
)
def test_a_ladder_that_says_nothing_is_refused(spoil, words):
    table = predictions(12, np.random.default_rng(0))
    with pytest.raises(InputError, match=words):
        fit_media_calibration(table, draws=2, ladder=spoil(versions_of(table, 0.5)))


def test_a_margin_leaves_a_threshold_that_nothing_reaches():
    table = predictions(12, np.random.default_rng(0))
    found = fit_media_calibration(table.assign(score=table.label.astype(float)), draws=2).combinations["loud"]
    all_ones = type(found)(
        found.detectors, found.calibration, found.draws, [[1.0]] * 12, [[1.0]] * 12, 0.0, 1.0
    )
    assert decision_for(all_ones, 0.05).fake_from > 1 and 0 <= decision_for(all_ones, 0.05).real_below <= 1


# --- as a file --------------------------------------------------------------------------------------------------


def damage(path, *place):
    def change(content):
        *parents, last = ["calibrations", 0, *path]
        for key in parents:
            content = content[key]
        if place:
            content[last] = place[0]
        else:
            del content[last]

    return change


DAMAGES = [
    damage(["kind"], "sound"), damage(["kind"], ["video"]), damage(["prior"], 0), damage(["prior"], "half"), damage(["about"], 7),
    damage(["n"], -1), damage(["n_fake"], 10**6), damage(["weights"], {}), damage(["weights"], None), damage(["calibrations"], {}),
    damage(["calibrations", "shy"]), damage(["calibrations", "shy", "parameters", "slope"], -1.0),
    damage(["calibrations", "shy", "parameters", "slope"], float("nan")), damage(["calibrations", "shy", "method"], "magic"),
    damage(["combinations", "shy"]), damage(["combinations", "shy", "detectors"], ["bold"]), damage(["combinations", "shy", "draws"], []),
    damage(["combinations", "shy", "draws"], [[1.0]]), damage(["combinations", "shy", "genuine"], [[2.0]]),
    damage(["combinations", "shy", "genuine"], []), damage(["combinations", "shy", "forged"], [[-1.0]]),
    damage(["combinations", "shy", "margin"], -1.0), damage(["combinations", "shy", "wobble"], float("inf")), damage(["familiarity"], {"mean": [0.0]}), damage(["more"], 1),
]  # fmt: skip


@pytest.mark.parametrize("change", [*DAMAGES, lambda content: content.update(format="other")])
def test_a_damaged_calibration_is_refused_in_a_sentence(calibration, tmp_path, change):
    write_calibrations(tmp_path / "c.json", calibration)
    content = json.loads((tmp_path / "c.json").read_text())
    change(content)
    (tmp_path / "c.json").write_text(json.dumps(content))
    with pytest.raises(
        InputError, match=r"no calibration of this version|cannot be read, or is of another version"
    ):
        read_calibrations(tmp_path / "c.json")


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b"null", b"\xff\xfe", b'{"format": 1}', b"[" * 100_000]
)
def test_files_that_are_no_calibration(tmp_path, content):
    (tmp_path / "c.json").write_bytes(content)
    with pytest.raises(InputError, match="no calibration of this version"):
        read_calibrations(tmp_path / "c.json")


def test_a_calibration_that_is_not_there_and_two_of_a_kind(calibration, tmp_path):
    with pytest.raises(InputError, match="cannot be opened"):
        read_calibrations(tmp_path / "absent.json")
    with pytest.raises(UsageError, match="one calibration for each kind"):
        write_calibrations(tmp_path / "c.json", calibration, calibration)
    assert not (tmp_path / "c.json").exists()


def test_a_file_gives_back_what_was_written(calibration, tmp_path):
    write_calibrations(tmp_path / "c.json", calibration)
    again = read_calibrations(tmp_path / "c.json")["video"]
    scores = {"loud": 0.7, "shy": 0.6}
    assert again.probability(scores) == pytest.approx(calibration.probability(scores), abs=1e-3)
    assert again.score(scores) == calibration.score(scores) and again.words == calibration.words
    write_calibrations(tmp_path / "d.json", again)
    assert (tmp_path / "d.json").read_bytes() == (tmp_path / "c.json").read_bytes()


def test_what_a_ladder_gave_goes_round_through_a_file(tmp_path):
    table = predictions(40, np.random.default_rng(4))
    found = fit_media_calibration(table, draws=20, ladder=versions_of(table, 0.6))
    write_calibrations(tmp_path / "c.json", found)
    again = read_calibrations(tmp_path / "c.json")["video"]
    kept = [
        (one.wobble, one.margin, one.genuine, one.forged)
        for one in (found.combinations["loud"], again.combinations["loud"])
    ]
    assert kept[0] == kept[1] and kept[0][0] > 0 and again.decision(["loud"]) == found.decision(["loud"])
    assert again.probability({"loud": 0.7}) == pytest.approx(found.probability({"loud": 0.7}), abs=1e-3)


def test_a_file_from_before_two_thresholds_has_one(calibration, tmp_path):
    write_calibrations(tmp_path / "c.json", calibration)
    content = json.loads((tmp_path / "c.json").read_text())
    for one in content["calibrations"][0]["combinations"].values():
        for name in ("forged", "wobble", "margin"):
            del one[name]
    (tmp_path / "c.json").write_text(json.dumps(content))
    old = read_calibrations(tmp_path / "c.json")["video"]
    found, threshold = old.decision(["loud"], 0.1), old.threshold(["loud"], 0.1)
    assert found.fake_from == found.real_below == threshold.score
    assert (found.rate, found.words) == (threshold.rate, threshold.sentence)
    scores = {"loud": 0.7, "shy": 0.6}
    assert old.probability(scores) == pytest.approx(calibration.probability(scores), abs=1e-3)


# --- out of distribution ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_stated_share_of_new_people_stays_within_the_limit():
    width, shares = sum(map(len, STATISTICS.values())), []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        mixing = rng.normal(size=(width, width))
        known, new = ((rng.normal(size=(n, width)) + rng.normal(size=(n, 1))) @ mixing for n in (120, 300))
        found = fit_out_of_distribution(known, range(120), share=0.95)
        shares.append(np.mean(found.distance(new) <= 1))
        assert np.all(found.distance(new + 40 * new.std(0)) > 1)
    assert 0.92 < np.mean(shares) < 0.99, shares


def test_a_face_is_compared_with_the_nearest_that_was_seen():
    known = np.random.default_rng(0).normal(size=(40, sum(map(len, STATISTICS.values()))))
    found = fit_out_of_distribution(known, range(40))
    assert found.distance(known) == pytest.approx(np.zeros(40), abs=1e-6)
    larger = known[7] + 60 * (np.arange(known.shape[1]) == COARSE - 1)
    assert found.distance(larger) > 1 and found.what_differs(larger).startswith("size")
    far = fit_out_of_distribution(np.concatenate([known, [larger + 1]]), range(41))
    assert far.distance(larger) < 1, "one that was seen is as far from the middle, and near to it"


@pytest.mark.slow
def test_statistics_do_not_depend_on_what_else_is_in_the_batch():
    crops = np.random.default_rng(0).integers(0, 256, (3, FACE_SIZE, FACE_SIZE, 3), dtype=np.uint8)
    alone = np.concatenate([face_statistics(crop[None], [90]) for crop in crops])
    assert np.allclose(face_statistics(crops, [90] * 3), alone, atol=1e-5) and np.isfinite(alone).all()
    black = face_statistics(np.zeros_like(crops), [1] * 3)
    assert np.isfinite(black).all() and black.shape == (3, sum(map(len, STATISTICS.values())))


@pytest.fixture(scope="module")
def memory():
    """What a calibration remembers of faces, as a file has it."""
    known = np.random.default_rng(0).normal(size=(20, sum(map(len, STATISTICS.values()))))
    return json.loads(json.dumps(fit_out_of_distribution(known, range(20)).as_dict()))


@pytest.mark.parametrize(
    "name, spoil",
    [
        ("mean", lambda numbers: numbers[:-1]), ("scale", lambda numbers: [0.0, *numbers[1:]]),
        ("scale", lambda numbers: [float("nan"), *numbers[1:]]), ("limits", lambda numbers: [-1.0, 1.0]),
        ("limits", lambda numbers: numbers * 2), ("share", lambda share: 1.0), ("share", lambda share: [0.9]),
        ("seen", lambda rows: []), ("seen", lambda rows: [row[:-1] for row in rows]), ("seen", lambda rows: rows[0]),
        ("seen", lambda rows: [[float("inf")] * len(rows[0])]), ("whitening", lambda rows: rows[:-1]),
        ("whitening", lambda rows: [row + [0.0] * len(rows) for row in rows]), ("whitening", lambda rows: [["many"]]),
        ("eyes", lambda sha256: "0" * 64), ("more", lambda nothing: 1),
    ],
)  # fmt: skip
def test_a_damaged_memory_of_faces_is_refused(memory, name, spoil):
    assert read_out_of_distribution(memory).n_people == 20
    with pytest.raises(InputError, match="cannot be read, or is of another version"):
        read_out_of_distribution(memory | {name: spoil(memory.get(name))})


@pytest.mark.parametrize(
    "statistics, people, words",
    [
        (np.zeros((12, 3)), range(9), "finite numbers, a row"),
        (np.full((12, 3), np.nan), range(12), "finite numbers"),
        (np.zeros((12, 3)), [1] * 12, "What 1 people look like"),
    ],
)
def test_statistics_that_say_nothing_of_others_are_refused(statistics, people, words):
    with pytest.raises(InputError, match=words):
        fit_out_of_distribution(statistics, people)
    with pytest.raises(UsageError, match="share of familiar media"):
        fit_out_of_distribution(np.zeros((12, 3)), range(12), share=1)


def test_logits_of_true_odds_come_back():
    """With the truth known, Platt's line is the one that the numbers were made with."""
    found = fit_media_calibration(predictions(2000, np.random.default_rng(0), slope=0.5), draws=2)
    said = [found.probability({"loud": expit(0.5 * signal)}).value for signal in (-1.5, 0.0, 1.5)]
    assert logit(said) == pytest.approx([-3, 0, 3], abs=0.25)

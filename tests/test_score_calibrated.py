"""Verdicts by a calibration: false alarms, faces out of distribution, two thresholds."""

from dataclasses import replace

import numpy as np
import pytest
from layouts import made_calibration
from scoring import assert_contract, level_of, patches, save, score_with, scorer_with, textured

from deepfake_nb.media.video import write_video


def test_a_calibrated_verdict_keeps_to_its_false_alarm_rate(calibrated, tmp_path):
    rng = np.random.default_rng(1)
    for number in range(40):
        save(tmp_path / f"{number}.png", textured(105 + rng.normal(scale=18), rng))
    for rate in (0.1, 0.5):
        verdicts = list(score_with(scorer_with(calibrated, false_alarm_rate=rate), tmp_path))
        for verdict in verdicts:
            assert_contract(verdict, calibrated=True)
        judged = [verdict for verdict in verdicts if not verdict.faces[0].unlike]
        assert len(judged) >= 36, "nearly all are like the calibration"
        alarms = np.mean([verdict.verdict == "fake" for verdict in judged])
        assert rate / 5 <= alarms + (rate < 0.2) * rate / 5 <= 1.7 * rate, (rate, alarms)
        assert {verdict.false_alarm_rate for verdict in judged if verdict.verdict != "abstain"} == {rate}
        for verdict in judged:
            low, high = verdict.interval
            assert low <= verdict.probability <= high and verdict.calibration.startswith(
                "60 pictures of 60 people"
            )


def test_a_face_unlike_the_calibration_gets_a_score_and_no_verdict(calibrated, tmp_path):
    save(tmp_path / "green.png", textured(150, np.random.default_rng(2), tint=(-40, 60, -40), spread=60))
    verdict = scorer_with(calibrated).score(tmp_path / "green.png")
    assert_contract(verdict, calibrated=True)
    assert verdict.verdict == "abstain" and verdict.score > 0 and verdict.probability is None
    assert "Unlike anything the calibration saw, mainly in" in verdict.reason and "patches" in verdict.reason
    assert verdict.faces[0].distance > 1 and verdict.faces[0].suspicious == []


def test_a_stranger_hides_nobody_and_vouches_for_nobody(calibrated, tmp_path):
    """With a stranger in it a file may be called fake for somebody familiar, but not real."""
    rng, words = np.random.default_rng(3), []
    for name, level in (("real", 90), ("fake", 172)):
        image = textured(level, rng)
        image[:, 120:220] = textured(150, rng, tint=(-40, 60, -40), spread=60)[:, :100]
        verdict = scorer_with(calibrated).score(save(tmp_path / f"{name}.png", image))
        assert_contract(verdict, calibrated=True)
        assert sorted(face.distance > 1 for face in verdict.faces) == [False, True]
        words.append(verdict.verdict)
    assert words == ["abstain", "fake"]


def test_several_people_share_the_false_alarm_rate(calibrated, tmp_path):
    rng = np.random.default_rng(4)
    image = textured(100, rng)
    image[:, 120:220] = textured(104, rng)[:, :100]
    scorer = scorer_with(calibrated, false_alarm_rate=0.2)
    pair = scorer.score(save(tmp_path / "pair.png", image))
    image[:, 120:220] = 0
    single = scorer.score(save(tmp_path / "single.png", image))
    assert pair.threshold > single.threshold and pair.false_alarm_rate == single.false_alarm_rate == 0.2
    assert "Each of 2 looks at people keeps to its share of 20 %" in pair.reason
    assert (
        "cannot promise less"
        in scorer_with(calibrated, false_alarm_rate=0.001).score(tmp_path / "pair.png").reason
    )


def test_a_calibration_of_other_weights_or_another_kind_is_not_used_and_that_is_said(calibrated, tmp_path):
    save(tmp_path / "face.png", textured(150, np.random.default_rng(0)))
    write_video(tmp_path / "face.mp4", [patches(150)] * 20, 25)
    others = replace(calibrated, weights={"test": "0" * 64})
    verdict = scorer_with(others).score(tmp_path / "face.png")
    assert_contract(verdict)
    assert "the calibration is not used: it belongs to other weights of 'test'" in verdict.reason
    video = scorer_with(calibrated).score(tmp_path / "face.mp4")
    assert_contract(video)
    assert "the calibration is not used: it is not for videos" in video.reason


@pytest.mark.parametrize("score, word", [(0.15, "real"), (0.5, "abstain"), (0.95, "fake")])
def test_between_the_two_thresholds_nothing_is_decided(tmp_path, score, word):
    """Genuine media got scores up to 0.8, and fakes from 0.2 on."""
    overlapping = made_calibration("test", genuine_to=0.8, fakes_from=0.2)
    path = save(tmp_path / "face.png", patches(level_of(score)))
    verdict = scorer_with(overlapping).score(path)
    assert_contract(verdict, calibrated=True)
    assert verdict.verdict == word and 0.2 < verdict.real_below < 0.35 and 0.7 < verdict.threshold < 0.8
    assert verdict.reason.startswith("Undecided: its score of") == (word == "abstain")
    assert (verdict.false_alarm_rate is None) == (word == "abstain") and verdict.probability is not None
    assert verdict.calibration.endswith("made numbers") and "is called fake" in verdict.reason


def test_a_margin_raises_the_threshold_from_which_on_a_score_is_fake(believed, tmp_path):
    ((name, plain),) = believed[0].combinations.items()
    careful = replace(believed[0], combinations={name: replace(plain, margin=1.0)})
    for score, words in ((0.6, ["fake", "abstain"]), (0.4, ["real", "real"]), (0.9, ["fake", "fake"])):
        path = save(tmp_path / "face.png", patches(level_of(score)))
        assert [scorer_with(one).score(path).verdict for one in (believed[0], careful)] == words

"""Several detectors on one file, of one task or of two."""

import numpy as np
import pandas as pd
import pytest
from layouts import WhiteSquares, made_calibration
from scoring import (
    BLUE,
    DARK,
    RED,
    Brightness,
    Colour,
    assert_contract,
    detector_of,
    ensemble_of,
    level_of,
    patches,
    save,
    sigmoid,
    two_tasks,
)

from deepfake_nb.media.video import write_video
from deepfake_nb.scoring.fit_calibration import calibrate
from deepfake_nb.scoring.score import MediaScorer, score_paths
from deepfake_nb.scoring.views import Detector, Ready, Sampling
from deepfake_nb.study.files import UsageError


@pytest.fixture
def counted(monkeypatch):
    """How often faces are followed through a video."""
    from deepfake_nb.scoring import views

    calls, track = [], views.track_faces
    monkeypatch.setattr(views, "track_faces", lambda *given, **how: calls.append(how) or track(*given, **how))
    return calls


def test_an_ensemble_tracks_people_once_and_agrees_with_its_members(counted, tmp_path):
    write_video(tmp_path / "two.mp4", [patches(102, 204)] * 64, 25)
    ensemble = ensemble_of()
    verdict = ensemble.score(tmp_path / "two.mp4")
    assert_contract(verdict)
    assert len(counted) == 1 and verdict.detector == "test + clips" and verdict.kind == "video"
    alone = [MediaScorer(loaded.detector, device="cpu", face_detector=WhiteSquares(), precision="float32")
             for loaded in ensemble.detectors]  # fmt: skip
    for own, single in zip(verdict.detectors, alone, strict=True):
        assert own["score"] == pytest.approx(single.score(tmp_path / "two.mp4").score, abs=0.01), own["name"]
    for face in verdict.faces:
        assert face.score == pytest.approx(np.mean(list(face.scores.values())), abs=1e-5)
        assert len(face.timeline) == 64
    assert verdict.score == max(face.score for face in verdict.faces)


def test_an_ensemble_leaves_pictures_to_those_who_can_score_them(tmp_path):
    save(tmp_path / "face.png", patches(200))
    verdict = ensemble_of().score(tmp_path / "face.png")
    assert_contract(verdict)
    assert verdict.detector == "test" and [own["name"] for own in verdict.detectors] == ["test"]


def test_a_person_whom_one_detector_has_no_score_for_is_judged_by_the_other(tmp_path):
    write_video(tmp_path / "short.mp4", [patches(200)] * 9, 25)
    calibration = made_calibration("test", "clips", kind="video")
    ensemble = ensemble_of(sampling=Sampling(fewest=9), calibration=calibration)
    verdict = ensemble.score(tmp_path / "short.mp4")
    assert_contract(verdict, calibrated=True)
    assert list(verdict.faces[0].scores) == ["test"] and verdict.verdict == "fake"
    assert [own["score"] is None for own in verdict.detectors] == [False, True]


def test_the_most_suspicious_views_are_kept_and_one_of_everybody(tmp_path):
    frames = [patches(90 + number, 200 if number == 30 else 60) for number in range(60)]
    write_video(tmp_path / "rise.mp4", frames, 25)
    ensemble = ensemble_of(sampling=Sampling(frames_per_second=25))
    verdict, kept = ensemble.examine(tmp_path / "rise.mp4", keep=2)
    assert_contract(verdict)
    frames_kept = [view for view in kept if view.detector == "test"]
    scores = [view.score for view in frames_kept]
    assert scores == sorted(scores, reverse=True) and {view.track for view in frames_kept} == {0, 1}
    assert frames_kept[0].moment_s == pytest.approx(30 / 25, abs=0.01) and frames_kept[1].moment_s > 2.2
    assert {view.pixels.shape for view in kept} == {(256, 256, 3), (32, 224, 224, 3)}
    assert ensemble.examine(tmp_path / "rise.mp4", keep=0)[1] == []


@pytest.mark.parametrize(
    "detectors, options, words",
    [
        ([], {}, "at least one"),
        (["meso4-df", "meso4-df"], {}, "each detector once"),
        (["meso4-df", "mesoinception-df"], {"clip_step": 4}, "look at single frames"),
        (["meso4-df", "meso9"], {}, "There is no detector 'meso9'"),
        (["meso4-df", "mesoinception-df"], {"weights": "one.h5"}, "One weight file is for one detector"),
        (["meso4-df", "mesoinception-df"], {"false_alarm_rate": 1.5}, "false-alarm rate is 1.5"),
    ],
)
def test_ensembles_that_cannot_be_are_refused(tmp_path, detectors, options, words):
    with pytest.raises(UsageError, match=words):
        score_paths(tmp_path, detectors, **options)


def test_an_ensemble_is_calibrated_as_one_and_a_part_of_it_as_that_part(tmp_path):
    rng, rows = np.random.default_rng(0), []
    for number in range(80):
        for name, slope in (("test", 2.0), ("clips", 1.0)):
            level = (number % 2) * 2 - 1 + rng.normal()
            rows.append((str(number), number % 2, sigmoid(slope * level), name, "video", str(number // 2)))
    names = ["media_id", "label", "score", "detector", "kind", "person"]
    ensemble = ensemble_of(sampling=Sampling(fewest=9))
    (found,), _ = calibrate(pd.DataFrame(rows, columns=names), ensemble, "made numbers", draws=20)
    ensemble.calibrations, ensemble.false_alarm_rate = [found], 0.1
    write_video(tmp_path / "long.mp4", [patches(160)] * 40, 25)
    write_video(tmp_path / "short.mp4", [patches(160)] * 9, 25)
    long, short = ensemble.score(tmp_path / "long.mp4"), ensemble.score(tmp_path / "short.mp4")
    for verdict in (long, short):
        assert_contract(verdict, calibrated=True)
        scores = verdict.faces[0].scores
        assert verdict.probability == pytest.approx(found.probability(scores).value, abs=1e-5)
        assert verdict.threshold == found.threshold(scores, 0.1).score
    assert set(long.faces[0].scores) == {"test", "clips"} and set(short.faces[0].scores) == {"test"}
    assert long.score == pytest.approx(found.score(long.faces[0].scores), abs=1e-5)
    assert long.score == pytest.approx(
        np.mean([moment["score"] for moment in long.faces[0].timeline]), abs=0.02
    )


@pytest.fixture(scope="module")
def of_red():
    return made_calibration("red")


@pytest.fixture(scope="module")
def of_blue():
    """Its genuine media got scores up to 0.8."""
    return made_calibration("blue", genuine_to=0.8, fakes_from=0.81)


def test_an_alarm_of_either_task_makes_a_file_fake_and_names_the_task(of_red, of_blue, tmp_path):
    ensemble, found = two_tasks(of_red, of_blue), {}
    for name, levels in {"red": [RED], "blue": [BLUE], "dark": [DARK], "both": [RED, BLUE]}.items():
        found[name] = ensemble.score(save(tmp_path / f"{name}.png", patches(*levels)))
        assert_contract(found[name], calibrated=True)
        assert all(set(face.scores) == {"red", "blue"} for face in found[name].faces)
    words = {name: (verdict.verdict, verdict.task) for name, verdict in found.items()}
    assert (words["red"], words["blue"]) == (("fake", "edited"), ("fake", "generated"))
    assert words["dark"][0] == "real" and words["both"][0] == "fake"
    assert found["red"].score == found["red"].faces[0].scores["red"] > 0.9, "tasks are not averaged"
    assert {face.task for face in found["both"].faces} == {"edited", "generated"}


def test_tasks_share_the_false_alarm_rate(of_red, of_blue, tmp_path):
    red, blue = (save(tmp_path / f"{c}.png", patches(level)) for c, level in (("red", RED), ("blue", BLUE)))
    ensemble = two_tasks(of_red, of_blue)
    ensemble.false_alarm_rate = 0.2
    for path, name, calibration in ((red, "red", of_red), (blue, "blue", of_blue)):
        verdict = ensemble.score(path)
        assert verdict.threshold == calibration.decision([name], 0.1).fake_from
        assert verdict.threshold > calibration.decision([name], 0.2).fake_from
        assert verdict.false_alarm_rate == pytest.approx(0.2)
        assert "Each of 2 looks at people keeps to its share of 20 %" in verdict.reason
    crowd = ensemble.score(save(tmp_path / "two.png", patches(RED, DARK)))
    assert crowd.threshold == of_red.decision(["red"], 0.05).fake_from


def test_each_task_is_read_by_its_own_calibration(of_red, of_blue, tmp_path):
    """0.65 is what fakes of the first calibration get, and genuine media of the second."""
    ensemble, level = two_tasks(of_red, of_blue), level_of(0.65)
    red = ensemble.score(save(tmp_path / "red.png", patches((level, 80, 80))))
    blue = ensemble.score(save(tmp_path / "blue.png", patches((80, 80, level))))
    assert (red.verdict, red.task) == ("fake", "edited") and blue.verdict == "real"
    assert red.probability == pytest.approx(of_red.probability({"red": red.score}).value, abs=1e-5)
    own = {one["name"]: one for one in blue.detectors}
    assert own["blue"]["score"] == pytest.approx(0.65, abs=0.03)
    expected = of_blue.probability({"blue": own["blue"]["score"]}).value
    assert own["blue"]["probability"] == pytest.approx(expected, abs=1e-5)


def test_a_task_without_a_calibration_neither_hides_an_alarm_nor_makes_one(of_red, tmp_path):
    ensemble = two_tasks(of_red)
    both = ensemble.score(save(tmp_path / "both.png", patches((level_of(0.9), 80, 250))))
    assert (both.verdict, both.task) == ("fake", "edited")
    assert {one["name"]: one["probability"] is None for one in both.detectors} == {"red": False, "blue": True}
    blue = ensemble.score(save(tmp_path / "blue.png", patches(BLUE)))
    assert (blue.verdict, blue.task) == ("abstain", "generated") and blue.reason.startswith("Not calibrated")
    dark = ensemble.score(save(tmp_path / "dark.png", patches(DARK)))
    assert (dark.verdict, dark.task) == ("real", "edited")


def test_a_detector_of_pictures_is_silent_on_videos(tmp_path):
    pictures = Detector(
        "pictures",
        lambda weights=None: Ready(Colour(0), "none", "nothing"),
        kinds=("picture",),
        task="generated",
    )
    write_video(tmp_path / "face.mp4", [patches(RED)] * 20, 25)
    save(tmp_path / "face.png", patches(RED))
    how = {"device": "cpu", "face_detector": WhiteSquares()}
    ensemble = MediaScorer([detector_of(Brightness()), pictures], **how)
    asked = {kind: ensemble.score(tmp_path / f"face.{kind}") for kind in ("mp4", "png")}
    assert asked["mp4"].detector == "test" and asked["png"].detector == "test + pictures"
    alone = MediaScorer(pictures, **how).score(tmp_path / "face.mp4")
    assert_contract(alone)
    assert alone.verdict == "abstain" and "judges single images, and this is a video" in alone.reason
    assert MediaScorer(pictures, **how).score(tmp_path / "face.png").score is not None

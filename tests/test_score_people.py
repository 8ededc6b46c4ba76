"""Who decides on a file, what a score is, and where the suspicious parts are."""

import numpy as np
import pytest
from layouts import WhiteSquares
from scoring import (
    BLUE,
    RED,
    Brightness,
    Colour,
    assert_contract,
    detector_of,
    logit_of,
    patches,
    save,
    sigmoid,
)

from deepfake_nb.media.video import write_video
from deepfake_nb.scoring.score import MediaScorer, score_paths
from deepfake_nb.scoring.views import Sampling


def test_the_most_suspicious_person_decides_and_each_stands_apart(quick, tmp_path):
    write_video(tmp_path / "two.mp4", [patches(102, 204)] * 50, 25)
    verdict = quick.score(tmp_path / "two.mp4")
    assert_contract(verdict, calibrated=True)
    scores = sorted(person.score for person in verdict.faces)
    assert scores == pytest.approx([1 / (1 + np.exp(1)), 1 / (1 + np.exp(-3))], abs=0.03)
    assert verdict.score == max(scores) and verdict.verdict == "fake"
    for person in verdict.faces:
        times = [moment["time_s"] for moment in person.timeline]
        assert times == sorted(times) and times[0] == 0 and times[-1] < 2 and len(times) > 10


def test_a_person_seen_too_shortly_has_no_score_and_does_not_decide(quick, tmp_path):
    frames = [patches(100, 250 if 20 <= number < 40 else 0, width=640, height=360) for number in range(100)]
    write_video(tmp_path / "guest.mp4", frames, 25)
    quick.sampling = Sampling(frames_per_second=5, fewest=1)
    verdict = quick.score(tmp_path / "guest.mp4")
    assert_contract(verdict, calibrated=True)
    assert [person.score is None for person in verdict.faces] == [False, True]
    assert 0 < verdict.faces[1].n_frames < 5
    assert verdict.verdict == "real" and verdict.score == verdict.faces[0].score < 0.5


def test_without_a_calibration_there_is_a_score_and_no_verdict(tmp_path):
    save(tmp_path / "grey.png", patches(140))
    for threshold in (0.3, 0.9):
        detector = detector_of(Brightness(), threshold=threshold)
        (verdict,) = score_paths(tmp_path / "grey.png", detector, face_detector=WhiteSquares())
        assert_contract(verdict)
        assert verdict.score == pytest.approx(sigmoid(logit_of(140)), abs=0.03)
        assert (
            verdict.reason.startswith("Not calibrated: ")
            and f"own threshold is {threshold}" in verdict.reason
        )
        assert (verdict.threshold, verdict.real_below) == (threshold, threshold)
        assert bool(verdict.faces[0].suspicious) == (threshold < 0.5), "where to look is still said"


def test_suspicious_seconds_are_where_the_forgery_was(quick, tmp_path):
    levels = [80] * 50 + [220] * 30 + [80] * 70
    write_video(tmp_path / "part.mp4", [patches(level) for level in levels], 25)
    verdict = quick.score(tmp_path / "part.mp4")
    (part,) = verdict.faces[0].suspicious
    assert part["start_s"] == pytest.approx(2.0, abs=0.25) and part["end_s"] == pytest.approx(3.2, abs=0.25)
    assert verdict.verdict == "real" and verdict.score < verdict.threshold


def test_at_most_so_many_frames_of_a_person_are_looked_at_evenly_spaced(tmp_path):
    write_video(tmp_path / "long.mp4", [patches(RED, BLUE)] * 250, 25)
    network = Colour(0)
    detector = detector_of(network, most_faces=8)
    verdict = MediaScorer(detector, device="cpu", face_detector=WhiteSquares()).score(tmp_path / "long.mp4")
    assert network.shown == 16 and [face.n_frames for face in verdict.faces] == [8, 8]
    for face in verdict.faces:
        times = [moment["time_s"] for moment in face.timeline]
        assert times[0] == 0 and times[-1] == pytest.approx(9.8, abs=0.01)
        assert np.ptp(np.diff(times)) <= 0.2 + 1e-6, (
            "frames of every fifth of a second, as even as those allow"
        )
    write_video(tmp_path / "short.mp4", [patches(RED)] * 30, 25)
    network.shown = 0
    MediaScorer(detector, device="cpu", face_detector=WhiteSquares()).score(tmp_path / "short.mp4")
    assert network.shown == 8

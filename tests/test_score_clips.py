"""Detectors of clips: their scores, their timelines, and videos that are too short for them."""

import numpy as np
import pytest
import torch
from layouts import WhiteSquares
from scoring import ClipLightness, assert_contract, logit_of, patches, save, sigmoid

from deepfake_nb.media.video import write_video
from deepfake_nb.scoring.score import MediaScorer
from deepfake_nb.scoring.views import ClipDetector, Ready


@pytest.fixture
def clip_scorer():
    """A scorer of clips for white patches on black; of a small batch, so that the last one is short."""
    detector = ClipDetector(
        "test", lambda weights=None: Ready(ClipLightness(), "none", "nothing"), batch_size=3
    )
    return MediaScorer(detector, device="cpu", face_detector=WhiteSquares(), precision="float32")


def test_clips_of_each_person_are_scored_apart_and_every_frame_has_a_moment(clip_scorer, believed, tmp_path):
    clip_scorer.calibrations = believed
    write_video(tmp_path / "two.mp4", [patches(102, 204)] * 70, 25)
    verdict = clip_scorer.score(tmp_path / "two.mp4")
    assert_contract(verdict, calibrated=True)
    assert sorted(person.score for person in verdict.faces) == pytest.approx(
        [sigmoid(logit_of(102)), sigmoid(logit_of(204))], abs=0.03
    )
    assert verdict.score == max(person.score for person in verdict.faces) and verdict.verdict == "fake"
    for person in verdict.faces:
        times = [moment["time_s"] for moment in person.timeline]
        assert times == pytest.approx((np.arange(70) / 25).tolist(), abs=1e-3) and person.n_frames == 70
    network = clip_scorer.detectors[0].network
    assert sum(shape[0] for shape in network.shapes) == 2 * 4 and {shape[0] for shape in network.shapes} == {
        3,
        2,
    }
    assert {shape[1:] for shape in network.shapes} == {(3, 32, 224, 224)}
    assert "reflection" not in verdict.reason


def test_a_timeline_is_the_mean_of_overlapping_clips(clip_scorer, tmp_path):
    levels = [100] * 40 + [160] * 24
    write_video(tmp_path / "step.mp4", [patches(level) for level in levels], 25)
    verdict = clip_scorer.score(tmp_path / "step.mp4")
    clips = [sigmoid(logit_of(np.mean(levels[start : start + 32]))) for start in (0, 16, 32)]
    expected = [clips[0]] * 16 + [np.mean(clips[:2])] * 16 + [np.mean(clips[1:])] * 16 + [clips[2]] * 16
    timeline = [moment["score"] for moment in verdict.faces[0].timeline]
    assert timeline == pytest.approx(expected, abs=0.03) and np.ptp(expected) > 0.3


def test_the_step_of_clips_is_chosen_and_hardly_moves_the_score(tmp_path):
    levels = 130 + 40 * np.sin(np.arange(90) / 12)
    write_video(tmp_path / "wave.mp4", [patches(int(level)) for level in levels], 25)
    ready = Ready(ClipLightness(), "none", "nothing", {"input_size": 56})
    how = {"device": "cpu", "face_detector": WhiteSquares(), "precision": "float32"}
    scores, counts = [], []
    for step in (1, 16, 32):
        ready.network.shapes.clear()
        scorer = MediaScorer(ClipDetector("test", lambda weights=None: ready), clip_step=step, **how)
        scores.append(scorer.score(tmp_path / "wave.mp4").score)
        counts.append(sum(shape[0] for shape in ready.network.shapes))
    assert counts == [59, 5, 3] and ready.network.shapes[0][1:] == (3, 32, 56, 56)
    every = [sigmoid(logit_of(levels[start : start + 32].mean())) for start in range(59)]
    assert np.ptp(every) > 0.2, "scores must differ from clip to clip, or nothing is tested"
    assert scores[0] == pytest.approx(np.mean(every), abs=0.01)
    assert scores[1] == pytest.approx(scores[0], abs=0.01) and scores[2] == pytest.approx(scores[0], abs=0.03)


@pytest.mark.parametrize("n_frames", [11, 20, 31])
def test_a_video_shorter_than_a_clip_goes_forwards_and_backwards_and_says_so(clip_scorer, tmp_path, n_frames):
    levels = np.linspace(90, 150, n_frames)
    write_video(tmp_path / "short.mp4", [patches(int(level)) for level in levels], 25)
    verdict = clip_scorer.score(tmp_path / "short.mp4")
    assert_contract(verdict)
    assert f"reflection: the face is there for {n_frames} frames, and a clip takes 32" in verdict.reason
    mirrored = np.pad(levels, (0, 32 - n_frames), mode="reflect")
    assert verdict.score == pytest.approx(sigmoid(logit_of(mirrored.mean())), abs=0.03)
    assert verdict.faces[0].n_frames == n_frames and clip_scorer.detectors[0].network.shapes == [
        (1, 3, 32, 224, 224)
    ]


def test_below_eleven_frames_nothing_is_said(clip_scorer, tmp_path):
    write_video(tmp_path / "ten.mp4", [patches(200)] * 10, 25)
    verdict = clip_scorer.score(tmp_path / "ten.mp4")
    assert_contract(verdict)
    assert verdict.verdict == "abstain" and "10 frames looked at, 11 are needed" in verdict.reason
    assert verdict.faces[0].score is None and clip_scorer.detectors[0].network.shapes == []


def test_a_face_that_is_lost_and_a_cut_end_a_clip(clip_scorer, tmp_path):
    gone = [patches(90)] * 40 + [patches(0)] * 30 + [patches(200)] * 40
    write_video(tmp_path / "gone.mp4", gone, 25)
    cut = [patches(90)] * 40 + [np.roll(patches(200), 30, (0, 1)) | 55 for _ in range(40)]
    write_video(tmp_path / "cut.mp4", cut, 25)
    for name in ("gone.mp4", "cut.mp4"):
        verdict = clip_scorer.score(tmp_path / name)
        assert_contract(verdict)
        scores = sorted(person.score for person in verdict.faces)
        assert len(scores) == 2 and scores[0] < 0.3 and scores[1] > 0.7, (name, scores)
    assert max(clip_scorer.detectors[0].network.spread) < 0.1, "a clip reaches over a gap"


def test_a_short_gap_is_bridged(clip_scorer, tmp_path):
    frames = [patches(level, width=640) for level in [180] * 30 + [0] * 6 + [180] * 30]
    write_video(tmp_path / "blink.mp4", frames, 25)
    verdict = clip_scorer.score(tmp_path / "blink.mp4")
    assert len(verdict.faces) == 1 and verdict.faces[0].n_frames == 66


def test_a_detector_of_clips_says_that_it_needs_a_video(clip_scorer, tmp_path):
    save(tmp_path / "face.png", patches(200))
    verdict = clip_scorer.score(tmp_path / "face.png")
    assert_contract(verdict)
    assert (
        verdict.verdict == "abstain"
        and "needs a video" in verdict.reason
        and "cannot be read" not in verdict.reason
    )


def test_a_network_of_clips_that_gives_no_number_makes_no_verdict(tmp_path):
    class Silent(torch.nn.Module):
        def forward(self, clips):
            return torch.full((len(clips),), float("nan"))

    write_video(tmp_path / "face.mp4", [patches(200)] * 40, 25)
    detector = ClipDetector("test", lambda weights=None: Ready(Silent(), "none", "nothing"))
    verdict = MediaScorer(detector, device="cpu", face_detector=WhiteSquares()).score(tmp_path / "face.mp4")
    assert_contract(verdict)
    assert verdict.verdict == "abstain" and "undefined" in verdict.reason

"""A camera is watched: its score, its summary, and another face in front of it."""

import json
from dataclasses import replace

import numpy as np
import pytest
from commands import status_of
from layouts import made_calibration
from scoring import patches, scorer_with, textured, two_tasks

from deepfake_nb.media.video import write_video
from deepfake_nb.scoring.camera import watch
from deepfake_nb.study.files import UsageError


def test_a_camera_is_watched_and_summed_up(with_test_detector, believed_file, tmp_path, capsys):
    levels = [80] * 30 + [220] * 40
    write_video(tmp_path / "call.mp4", [patches(level) for level in levels] + [patches()] * 5, 25)
    about = ("--camera", tmp_path / "call.mp4", "--detector", "test", "--json", tmp_path / "w.json")
    assert status_of("score", *about) == 0 and "no verdict: not calibrated" in capsys.readouterr().out
    about += ("--calibration", believed_file)
    assert status_of("score", *about) == 0
    out, err = capsys.readouterr()
    assert "75 frames in" in out and "a face in 70 of them" in out and "frames/s" in err
    watched = json.loads((tmp_path / "w.json").read_text())
    words = [moment["word"] for moment in watched["moments"]]
    assert words[0] == "real" and words[65] == "fake" and words[-1] == "no face"
    assert watched["highest_score"] > 0.6 and watched["highest_at_s"] == pytest.approx(69 / 25, abs=0.05)
    assert status_of("score", *about, "--frames", "7") == 0 and "7 frames in" in capsys.readouterr().out


def test_a_camera_is_watched_by_the_detectors_of_videos(tmp_path):
    write_video(tmp_path / "call.mp4", [patches((230, 80, 230))] * 12, 25)
    ensemble = two_tasks(made_calibration("red", kind="video"))
    for loaded in ensemble.detectors[1:]:
        loaded.detector = replace(loaded.detector, kinds=("picture",))
    assert {moment.word for moment in watch(tmp_path / "call.mp4", ensemble).moments} == {"fake"}
    ensemble.detectors = ensemble.detectors[1:]
    with pytest.raises(UsageError, match="blue judges images only"):
        watch(tmp_path / "call.mp4", ensemble)


def test_without_a_camera_there_is_a_sentence(with_test_detector, tmp_path, capsys):
    assert status_of("score", "--camera", "63", "--detector", "test") == 3
    assert "The camera 63 gives no image" in capsys.readouterr().err
    write_video(tmp_path / "empty.mp4", [patches()] * 4, 25)
    assert status_of("score", "--camera", tmp_path / "empty.mp4", "--detector", "test") == 3
    assert "no face was seen" in capsys.readouterr().err


def test_ctrl_c_ends_watching_with_a_summary(quick, tmp_path):
    write_video(tmp_path / "call.mp4", [patches(200)] * 20, 25)

    def tell(moment):
        if moment.time_s > 0.3:
            raise KeyboardInterrupt

    watched = watch(tmp_path / "call.mp4", quick, tell=tell)
    assert watched.frames == 9 and watched.highest_score > 0.9 and watched.share_fake == 1


def test_the_highest_score_is_not_forgotten_when_its_moment_is(quick, tmp_path, monkeypatch):
    from deepfake_nb.scoring import camera

    monkeypatch.setattr(camera.RunningTotals.__init__, "__defaults__", (10,))
    write_video(tmp_path / "call.mp4", [patches(230)] * 20 + [patches()] * 5 + [patches(90)] * 100, 25)
    watched = camera.watch(tmp_path / "call.mp4", quick, window_s=0.2)
    assert watched.frames == 125 and watched.frames_with_face == 120 and len(watched.moments) == 10
    assert watched.highest_score > 0.9 and watched.highest_at_s < 0.8
    assert 0.1 < watched.share_fake < 0.3


def test_a_window_shorter_than_the_time_between_portraits_knows_a_stranger(calibrated, tmp_path):
    rng = np.random.default_rng(2)
    write_video(tmp_path / "odd.mp4", [textured(150, rng, tint=(-40, 60, -40), spread=60)] * 30, 25)
    words = [
        m.word
        for m in watch(
            tmp_path / "odd.mp4", scorer_with(replace(calibrated, kind="video")), window_s=0.1
        ).moments
    ]
    assert set(words) == {"unlike the calibration"}


def test_a_face_somewhere_else_begins_anew(quick, tmp_path):
    left, right = patches(90), np.roll(patches(220), 150, axis=1)
    write_video(tmp_path / "call.mp4", [left] * 20 + [right] * 5, 25)
    moments = watch(tmp_path / "call.mp4", quick).moments
    assert moments[19].score < 0.3 and moments[20].score > 0.8, "the score is not that of the new face alone"

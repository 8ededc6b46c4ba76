"""Published and shipped detectors on real and rendered media."""

import av
import cv2
import numpy as np
import pytest
from layouts import made_calibration
from scoring import assert_contract, save, score_with

from deepfake_nb.media.faces import CenterFace
from deepfake_nb.media.video import write_video
from deepfake_nb.networks.weights import REGISTRY
from deepfake_nb.people.heads import random_identity
from deepfake_nb.people.rendering import render_stills, render_video
from deepfake_nb.scoring.score import RENDERED, MediaScorer, open_scorer
from deepfake_nb.scoring.views import Sampling


@pytest.fixture(scope="module")
def released(shared_data):
    weights = shared_data / "mesonet" / "weights" / "Meso4_DF.h5"
    calibration = made_calibration(
        "meso4-df", kind="video", weights={"meso4-df": REGISTRY["meso4-df"].sha256}
    )
    how = {"sampling": Sampling(frames_per_second=1), "calibration": calibration}
    return MediaScorer("meso4-df", weights, **how), shared_data


@pytest.mark.slow
def test_meso4_separates_a_face_swap_from_its_target_video(released):
    scorer, data = released
    folder = data / "ffpp"
    real = scorer.score(folder / "original_sequences/youtube/c23/videos/519.mp4")
    fake = scorer.score(folder / "manipulated_sequences/Deepfakes/c23/videos/519_515.mp4")
    assert_contract(real, calibrated=True), assert_contract(fake, calibrated=True)
    assert (real.verdict, fake.verdict) == ("real", "fake")
    assert fake.score > real.score + 0.2
    assert fake.weights == "meso4-df" and "face-swap" in fake.trained_on
    assert len(fake.faces) == 1 and fake.faces[0].n_frames > 25


def test_meso4_ranks_face_swaps_above_genuine_faces(released):
    from sklearn.metrics import roc_auc_score

    scorer, data = released
    stills = data / "swap_stills" / "test"
    fakes = [scorer.score(path).score for path in sorted((stills / "fake").glob("Deepfakes_*.jpg"))]
    reals = [scorer.score(path).score for path in sorted((stills / "real").glob("*.jpg"))[::6]]
    assert len(fakes) >= 10 and None not in fakes + reals
    assert roc_auc_score([1] * len(fakes) + [0] * len(reals), fakes + reals) > 0.85


@pytest.fixture(scope="module")
def shipped():
    """The detectors of rendered people, with the calibrations that come with the package."""
    return open_scorer(RENDERED, device="cpu", face_detector=CenterFace(threads=2))


@pytest.mark.slow
def test_rendered_people_are_familiar_to_the_shipped_calibration(shipped, tmp_path):
    people = [random_identity(880_000 + number) for number in range(8)]
    for number, image in enumerate(render_stills(people, "studio", size=256, seed=4).images):
        save(tmp_path / f"{number}.jpg", image, quality=90)
    verdicts = list(score_with(shipped, tmp_path))
    for verdict in verdicts:
        assert_contract(verdict, calibrated=True)
    judged = [verdict for verdict in verdicts if verdict.verdict != "abstain"]
    assert len(judged) >= 7, [verdict.reason for verdict in verdicts]
    assert all(verdict.false_alarm_rate == 0.05 and verdict.interval for verdict in judged)
    assert sum(verdict.verdict == "real" for verdict in judged) >= 6


@pytest.mark.slow
def test_faces_that_fill_a_large_frame_are_familiar_too(shipped, tmp_path):
    groups = [group for kind in ("video", "picture") for group in shipped.group_by_task(kind)]
    assert [group.calibration.words is not None for group in groups] == [True, True]
    stills = render_stills(
        [random_identity(880_100 + number) for number in range(3)], "studio", size=704, seed=4
    )
    for number, image in enumerate(stills.images):
        save(tmp_path / f"{number}.jpg", image, quality=90)
    film = render_video(random_identity(3), "studio", 24, size=192, seed=0).images
    frames = np.full((36, 720, 1280, 3), 90, np.uint8)
    for number, frame in enumerate(frames):
        image = film[min(number, 46 - number)]
        frame[60:660, 340 + number : 940 + number] = cv2.resize(image, (600, 600))
    write_video(tmp_path / "film.mp4", frames, 25, crf=23)
    verdicts = list(score_with(shipped, tmp_path))
    assert [verdict.kind for verdict in verdicts] == ["picture"] * 3 + ["video"]
    assert verdicts[3].verdict == "real" and verdicts[3].probability < 0.5, verdicts[3].reason
    assert sum(verdict.verdict != "abstain" for verdict in verdicts) >= 3, [v.reason for v in verdicts]


def save_opening(path, source, seconds):
    """Copy the first seconds of a video, packet by packet."""
    with av.open(str(source)) as whole, av.open(str(path), "w") as opening:
        stream = opening.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(whole.streams.video[0]):
            if packet.pts is None or packet.pts * packet.time_base > seconds:
                break
            packet.stream = stream
            opening.mux(packet)


@pytest.mark.slow
def test_living_people_on_film_are_unlike_the_shipped_calibration(shipped, shared_data, tmp_path):
    films = [film for name in ("ffpp", "dfdc") for film in sorted((shared_data / name).rglob("*.mp4"))]
    for film in films:
        save_opening(tmp_path / film.name, film, seconds=3)
    judged = [verdict for verdict in score_with(shipped, tmp_path) if verdict.score is not None]
    unlike = ["Unlike anything the calibration saw" in verdict.reason for verdict in judged]
    assert len(judged) >= 4 and sum(unlike) >= len(judged) - 1, [v.faces[0].distance for v in judged]


def test_photographs_are_mostly_unlike_the_shipped_calibration(shipped, shared_data):
    photographs = sorted((shared_data / "lfw").rglob("*.jpg"))[::30][:10]
    photographs += sorted((shared_data / "synthetic_stills" / "test" / "real").iterdir())[:10]
    verdicts = [shipped.score(path) for path in photographs]
    unlike = [verdict for verdict in verdicts if "Unlike anything the calibration saw" in verdict.reason]
    assert len(unlike) >= 15, [verdict.verdict for verdict in verdicts]
    for verdict in unlike:
        assert_contract(verdict, calibrated=True)
        assert verdict.verdict == "abstain" and verdict.score is not None and verdict.probability is None
        assert "rendered people" in verdict.reason and "rendered people" in verdict.trained_on

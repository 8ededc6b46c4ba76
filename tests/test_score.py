"""Scoring media: every kind of bad input gets a verdict with a reason, and the batch goes on."""

import csv
import json
import os
import tracemalloc
from pathlib import Path

import av
import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from layouts import WhiteSquares, made_calibration
from PIL import Image

from deepfake_nb.calibration import read_calibrations, write_calibrations
from deepfake_nb.faces import CenterFace
from deepfake_nb.fit_calibration import calibrate, find_labelled_media, gather
from deepfake_nb.heads import random_identity
from deepfake_nb.rendered import render_stills, render_video
from deepfake_nb.score import (
    DETECTORS,
    RENDERED,
    MediaScorer,
    open_scorer,
    score_paths,
    write_verdicts,
)
from deepfake_nb.study import InputError, UsageError
from deepfake_nb.video import read_frames, write_video
from deepfake_nb.views import ClipDetector, Detector, Ready, Sampling, cut_as_mesonet, find_media
from deepfake_nb.weights import REGISTRY

CONTRACT = {
    "path",
    "verdict",
    "score",
    "probability",
    "interval",
    "reason",
    "detector",
    "weights",
    "trained_on",
    "faces",
    "kind",
    "threshold",
    "false_alarm_rate",
    "real_below",
    "task",
    "calibration",
    "detectors",
    "reason_code",
    "footnote",
    "advice",
}
FACE = {
    "track", "n_frames", "score", "timeline", "scores", "probability", "interval", "threshold", "real_below", "distance",
    "task", "suspicious",
}  # fmt: skip


class Brightness(torch.nn.Module):
    """Logit 0 where the middle of a crop is grey 0.5, higher where it is brighter: an answer that can be foreseen."""

    def forward(self, faces):
        return 10 * (faces[..., 96:160, 96:160].mean(dim=(1, 2, 3)) - 0.5)


def detector_of(network, **rules):
    return Detector("test", lambda weights=None: Ready(network, "none", "nothing"), **rules)


@pytest.fixture(scope="session")
def face():
    """A rendered face, 256 pixels."""
    return render_stills([random_identity(3)], "studio", size=256, seed=0).images[0]


@pytest.fixture(scope="module")
def scorer():
    return MediaScorer(detector_of(Brightness()), device="cpu", face_detector=CenterFace(threads=2))


@pytest.fixture(scope="session")
def believed():
    """A calibration of the detector of brightness for each kind of media: what is lighter than grey 0.5 is fake."""
    return [made_calibration("test", kind=kind) for kind in ("picture", "video")]


@pytest.fixture(scope="session")
def believed_file(believed, tmp_path_factory):
    """The same as a file."""
    path = tmp_path_factory.mktemp("believed") / "c.json"
    write_calibrations(path, *believed)
    return path


@pytest.fixture
def quick(believed):
    """A scorer for white patches on black."""
    return MediaScorer(
        detector_of(Brightness()), device="cpu", face_detector=WhiteSquares(), calibration=believed
    )


def patches(*levels, side=64, width=320, height=120):
    """A black picture with a patch of each grey level."""
    image = np.zeros((height, width, 3), np.uint8)
    for number, level in enumerate(levels):
        image[20 : 20 + side, 20 + 100 * number : 20 + 100 * number + side] = level
    return image


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **options)
    return path


def assert_contract(verdict, calibrated=False):
    record = json.loads(json.dumps(verdict.as_dict(), allow_nan=False))
    assert set(record) == CONTRACT
    assert record["verdict"] in ("fake", "real", "abstain") and record["reason"]
    assert record["kind"] in ("picture", "video", None)
    if not calibrated:
        assert record["verdict"] == "abstain"
        assert (record["score"] is None) != ("Not calibrated" in record["reason"])
        assert [record[name] for name in ("probability", "interval", "false_alarm_rate", "calibration")] == [
            None
        ] * 4
    if record["verdict"] != "abstain":
        assert (record["score"] >= record["threshold"]) == (record["verdict"] == "fake")
        assert (record["score"] < record["real_below"]) == (record["verdict"] == "real")
    assert record["detectors"] and all(
        set(own) == {"name", "score", "probability", "weights", "sha256", "trained_on"}
        for own in record["detectors"]
    )
    for person in record["faces"]:
        assert set(person) == FACE and (person["score"] is None) == (not person["scores"])
        assert person["n_frames"] == len(person["timeline"])
        assert all(set(moment) == {"time_s", "score"} for moment in person["timeline"])
        assert all(set(part) == {"start_s", "end_s"} for part in person["suspicious"])


# --- what a score is -------------------------------------------------------------------------------------------


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


def test_a_crop_beyond_the_border_is_mirrored_and_a_huge_face_stays_small_in_memory():
    landmarks = np.float32([[30, 30], [70, 30], [50, 50], [35, 75], [65, 75]])
    image = np.full((60, 60, 3), 200, np.uint8)
    assert np.all(cut_as_mesonet(image, np.float32([0, 0, 100, 100]), landmarks) == 200)
    assert np.all(cut_as_mesonet(image, np.float32([-90, -90, -10, -10]), landmarks - 90) == 200)
    huge = np.full((4000, 4000, 3), 90, np.uint8)
    crop = cut_as_mesonet(huge, np.float32([0, 0, 3900, 3900]), landmarks * 39)
    assert crop.shape == (256, 256, 3) and np.all(crop == 90)


# --- bad input: each gets a reason, none stops the rest -----------------------------------------------------------


def test_damaged_and_mislabelled_files_do_not_stop_a_batch(scorer, face, tmp_path):
    good = write_video(tmp_path / "whole.mp4", [face] * 12, 12)
    content = good.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) // 2])
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.mp4").write_text("This is no video.")
    (tmp_path / "text.jpg").write_text("This is no picture.")
    save(tmp_path / "zz.png", face)
    write_sound(tmp_path / "sound.mp4")
    verdicts = {Path(verdict.path).name: verdict for verdict in score_with(scorer, tmp_path)}
    assert len(verdicts) == 8
    for name, verdict in verdicts.items():
        assert_contract(verdict)
        if name in ("whole.mp4", "zz.png"):
            assert verdict.score is not None, verdict.reason
        else:
            assert verdict.verdict == "abstain" and "fault of this program" not in verdict.reason, (
                verdict.reason
            )
    assert "empty" in verdicts["empty.mp4"].reason and "empty" in verdicts["empty.jpg"].reason


def score_with(scorer, *paths):
    """What `score_paths` gives, by a scorer that is there already."""
    from deepfake_nb.score import Verdicts

    return Verdicts(scorer, paths)


def write_sound(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        for start in range(0, 16000, 1024):
            wave = np.sin(np.arange(start, start + 1024) / 20).astype(np.float32)[None]
            frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_a_video_without_a_face_and_one_of_one_frame(scorer, face, tmp_path):
    noise = np.random.default_rng(0).integers(0, 60, (10, 128, 128, 3), dtype=np.uint8)
    write_video(tmp_path / "noface.mp4", noise, 10)
    write_video(tmp_path / "one.mp4", [face], 25)
    no_face, one = score_with(scorer, tmp_path)
    assert_contract(no_face), assert_contract(one)
    assert no_face.verdict == "abstain" and "No face was found in 10 frames" in no_face.reason
    assert one.verdict == "abstain" and "Too few frames" in one.reason and "5 are needed" in one.reason
    assert one.faces[0].n_frames == 1 and one.faces[0].score is None


def test_tiny_and_huge_pictures(scorer, face, tmp_path):
    save(tmp_path / "a_tiny.png", np.zeros((1, 1, 3), np.uint8))
    huge = cv2.resize(face, (4320, 4320))
    save(tmp_path / "b_8k.jpg", cv2.copyMakeBorder(huge, 0, 0, 1680, 1680, cv2.BORDER_REPLICATE), quality=80)
    tiny, large = score_with(scorer, tmp_path)
    assert_contract(tiny), assert_contract(large)
    assert tiny.verdict == "abstain"
    assert large.score == pytest.approx(scorer.score(save(tmp_path / "face.png", face)).score, abs=0.1)


def test_unusual_pictures_score_like_the_plain_one(scorer, face, tmp_path):
    plain = scorer.score(save(tmp_path / "plain.png", face)).score
    picture = Image.fromarray(face)
    picture.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    picture.quantize(256).save(tmp_path / "palette.png")
    picture.convert("L").save(tmp_path / "grey.png")
    grey = np.asarray(picture.convert("L")).astype(np.uint16) * 257
    Image.fromarray(grey).save(tmp_path / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.rotate(90, expand=True).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    for name in ("cmyk.jpg", "palette.png", "grey.png", "deep.png", "turned.jpg"):
        verdict = scorer.score(tmp_path / name)
        assert_contract(verdict)
        assert verdict.score == pytest.approx(plain, abs=0.1), (name, verdict.reason)


def test_a_face_below_the_smallest_size(scorer, face, tmp_path):
    image = np.full((256, 256, 3), 127, np.uint8)
    image[100:160, 100:160] = cv2.resize(face, (60, 60), interpolation=cv2.INTER_AREA)
    scorer = MediaScorer(detector_of(Brightness(), smallest_face=64), face_detector=scorer.face_detector)
    verdict = scorer.score(save(tmp_path / "small.png", image))
    assert_contract(verdict)
    assert (
        verdict.verdict == "abstain" and "too small" in verdict.reason and "64 are needed" in verdict.reason
    )


@pytest.mark.parametrize(
    "name", ["ein Bild mit Lücken.png", "Жанна/лицо.png", "顔.png", "a'b\"c<d>&.png", "new\nline.png"]
)
def test_file_names_of_all_kinds(quick, tmp_path, name):
    save(tmp_path / name, patches(200))
    verdicts = list(score_with(quick, tmp_path))
    write_verdicts(verdicts, tmp_path / "out.json", tmp_path / "out.csv")
    assert verdicts[0].score is not None
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))[0]["path"] == str(tmp_path / name)
    with open(tmp_path / "out.csv", encoding="utf-8", newline="") as file:
        assert next(csv.DictReader(file))["path"] == str(tmp_path / name)


def test_a_file_name_that_is_no_unicode(quick, tmp_path):
    odd = os.fsencode(tmp_path) + b"/\xff.png"
    try:
        with open(odd, "wb") as file:
            file.write(save(tmp_path / "a.png", patches(200)).read_bytes())
    except OSError:
        pytest.skip("this file system takes no names that are not Unicode")
    write_verdicts(score_with(quick, tmp_path), tmp_path / "out.json", tmp_path / "out.csv")
    records = json.loads((tmp_path / "out.json").read_text())
    assert [record["score"] is not None for record in records] == [True, True]


def test_a_folder_that_may_not_be_read_is_named_and_the_rest_goes_on(quick, tmp_path, monkeypatch):
    for folder in ("a", "locked", "z"):
        save(tmp_path / folder / "face.png", patches(200))
    scandir = os.scandir

    def guarded(path="."):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    verdicts = {verdict.path: verdict for verdict in score_with(quick, tmp_path)}
    names = sorted(Path(path).relative_to(tmp_path).as_posix() for path in verdicts)
    assert names == ["a/face.png", "locked", "z/face.png"]
    locked = verdicts[str(tmp_path / "locked")]
    assert_contract(locked)
    assert locked.verdict == "abstain" and "Permission denied" in locked.reason
    (alone,) = score_with(quick, tmp_path / "locked")
    assert "Permission denied" in alone.reason and "no picture or video" not in alone.reason


def test_paths_that_are_not_there(quick, tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    paths = [tmp_path / "absent.mp4", tmp_path / "notes.txt", tmp_path / "*.mp4", tmp_path]
    reasons = [verdict.reason for verdict in score_with(quick, *paths)]
    expected = [
        "There is no file",
        "neither a picture nor a video",
        "matches this pattern",
        "no picture or video in this",
    ]
    assert len(reasons) == 4
    assert all(words in reason for words, reason in zip(expected, reasons, strict=True)), reasons


def test_a_broken_link_and_a_loop_of_folders(quick, tmp_path):
    save(tmp_path / "face.png", patches(200))
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "gone.jpg")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    words = [(Path(verdict.path).name, verdict.verdict) for verdict in score_with(quick, tmp_path)]
    assert words == [("dangling.jpg", "abstain"), ("face.png", "fake")]


def test_brackets_in_a_file_name_are_no_pattern(tmp_path):
    save(tmp_path / "clip[1].png", patches(200))
    assert [source.problem for source in find_media([tmp_path / "clip[1].png"])] == [None]


def test_a_network_that_gives_no_number_makes_no_verdict(tmp_path):
    class Silent(torch.nn.Module):
        def forward(self, faces):
            return torch.full((len(faces),), float("nan"))

    save(tmp_path / "face.png", patches(200))
    (verdict,) = score_paths([tmp_path], detector_of(Silent()), face_detector=WhiteSquares())
    assert_contract(verdict)
    assert verdict.verdict == "abstain" and "undefined" in verdict.reason
    assert verdict.faces[0].timeline == [{"time_s": 0.0, "score": None}]


def test_our_own_fault_on_one_file_does_not_stop_the_rest(tmp_path):
    class Fragile(torch.nn.Module):
        def forward(self, faces):
            if faces.max() > 0.9:
                raise RuntimeError("too bright")
            return faces.mean(dim=(1, 2, 3))

    save(tmp_path / "a.png", patches(255))
    save(tmp_path / "b.png", patches(120))
    first, second = score_paths([tmp_path], detector_of(Fragile()), face_detector=WhiteSquares())
    assert first.verdict == "abstain" and "too bright" in first.reason
    assert second.score is not None


# --- many files, large files ------------------------------------------------------------------------------------


def test_files_are_read_as_verdicts_are_taken(quick, tmp_path):
    for number in range(3):
        save(tmp_path / f"{number}.png", patches(200))
    verdicts = score_with(quick, tmp_path)
    next(verdicts)
    (tmp_path / "1.png").unlink()
    assert [verdict.verdict for verdict in verdicts] == ["abstain", "fake"]


def test_memory_does_not_grow_with_the_number_of_files(quick, tmp_path):
    save(tmp_path / "face.png", patches(200))
    for number in range(150):
        os.link(tmp_path / "face.png", tmp_path / f"{number:03}.png")
    verdicts, held = score_with(quick, tmp_path), []
    tracemalloc.start()
    for number, _ in enumerate(verdicts):
        if number in (30, 140):
            held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert held[1] - held[0] < 100_000, held


def test_memory_does_not_grow_with_the_length_of_a_video(quick, tmp_path):
    peaks = []
    for seconds in (20, 60):
        write_video(tmp_path / "long.mp4", (patches(200) for _ in range(25 * seconds)), 25)
        tracemalloc.start()
        assert quick.score(tmp_path / "long.mp4").faces[0].n_frames == 5 * seconds
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 3_000_000, peaks


def test_a_long_film_is_looked_at_less_often():
    assert Sampling().stride(25, 25 * 3600 * 2) == 300
    assert Sampling(most=100).stride(30, 3000) == 30
    assert Sampling().stride(None, None) == 5


# --- detectors and their weights ----------------------------------------------------------------------------------


def test_a_wrong_detector_or_weight_file_fails_before_any_media_is_opened(tmp_path):
    text = tmp_path / "text.h5"
    text.write_text("not weights")
    with pytest.raises(UsageError, match="Choose one of: meso4-df"):
        score_paths([tmp_path / "absent.mp4"], "meso9")
    with pytest.raises(InputError, match="neither HDF5"):
        score_paths([tmp_path / "absent.mp4"], "meso4-df", text)
    with pytest.raises(InputError, match="cannot be opened"):
        score_paths([tmp_path / "absent.mp4"], "meso4-df", tmp_path / "absent.h5")


def test_weights_nobody_registered_are_named_as_such(tmp_path, face):
    from deepfake_nb.mesonet import Meso4

    torch.save(Meso4().state_dict(), tmp_path / "mine.pt")
    save(tmp_path / "face.png", face)
    (verdict,) = score_paths(tmp_path / "face.png", "meso4-df", tmp_path / "mine.pt", device="cpu")
    assert_contract(verdict)
    assert verdict.weights.startswith("mine.pt (SHA-256 ") and "unknown" in verdict.trained_on
    assert 0 < verdict.score < 1


def test_xception_scores_by_its_own_preprocessing(tmp_path, face):
    from deepfake_nb.xception import Xception, to_deepfakebench

    torch.manual_seed(0)
    network = Xception()
    torch.nn.init.normal_(network.fc.weight, std=0.5)
    released = {f"module.{name}": tensor for name, tensor in to_deepfakebench(network.state_dict()).items()}
    torch.save({"state_dict": released}, tmp_path / "xception.pth")
    save(tmp_path / "face.png", face)
    (verdict,) = score_paths(tmp_path / "face.png", "xception", tmp_path / "xception.pth", device="cpu")
    assert_contract(verdict)
    assert verdict.detector == "xception" and verdict.weights.startswith("xception.pth (SHA-256 ")
    found = CenterFace(threads=2).detect(face)
    crop = deepfakebench_crop(face, found.landmarks[0])
    inputs = torch.from_numpy(crop).permute(2, 0, 1)[None].float().div(255).sub(0.5).div(0.5)
    with torch.inference_mode():
        expected = float(torch.softmax(network.eval()(inputs), 1)[0, 1])
    assert 0.001 < expected < 0.999, "a saturated answer compares to anything"
    assert verdict.score == pytest.approx(expected, abs=2e-3)
    assert verdict.verdict == "abstain" and verdict.threshold == 0.5


def deepfakebench_crop(image, points, size=256):
    """The crop written from its description alone: ArcFace's points at 112 px, 1.3 times as wide, least squares."""
    template = np.array(
        [[30.2946, 51.6963], [65.5318, 51.5014], [48.0252, 71.7366], [33.5493, 92.3655], [62.7299, 92.2041]]
    )
    target = ((template + np.array([8, 0])) * size / 112 + 0.15 * size) / 1.3
    rows = [row for x, y in points for row in ([x, -y, 1, 0], [y, x, 0, 1])]
    a, b, x, y = np.linalg.lstsq(np.array(rows, float), target.ravel(), rcond=None)[0]
    return cv2.warpAffine(image, np.array([[a, -b, x], [b, a, y]]), (size, size))


def test_xception_without_its_file_says_where_to_get_it(tmp_path):
    with pytest.raises(InputError, match=r"xception_best\.pth .* give the file with --weights"):
        score_paths(tmp_path, "xception")


def test_every_detector_has_a_registered_checkpoint_and_no_encoder_is_one():
    assert set(DETECTORS) == {name for name, entry in REGISTRY.items() if entry.polarity}
    with pytest.raises(UsageError, match="There is no detector 'clip-vit-b16'"):
        MediaScorer("clip-vit-b16")


# --- clips ------------------------------------------------------------------------------------------------------


class ClipLightness(torch.nn.Module):
    """Logit 0 where the middle of a clip is grey 0.5 on average over its frames, higher where it is brighter."""

    def __init__(self):
        super().__init__()
        self.shapes, self.spread = [], []

    def forward(self, clips):
        self.shapes.append(tuple(clips.shape))
        mean, deviation = (
            torch.tensor(v).view(3, 1, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        )
        low, high = clips.shape[-1] * 3 // 7, clips.shape[-1] * 5 // 7
        frames = (clips * deviation + mean)[..., low:high, low:high].mean((1, 3, 4))
        self.spread += (frames.max(1).values - frames.min(1).values).tolist()
        return 10 * (frames.mean(1) - 0.5)


@pytest.fixture
def clip_scorer():
    """A scorer of clips for white patches on black; of a small batch, so that the last one is short."""
    detector = ClipDetector(
        "test", lambda weights=None: Ready(ClipLightness(), "none", "nothing"), batch_size=3
    )
    return MediaScorer(detector, device="cpu", face_detector=WhiteSquares(), precision="float32")


def logit_of(level):
    return 10 * (level / 255 - 0.5)


def sigmoid(logit):
    return 1 / (1 + np.exp(-logit))


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


@pytest.mark.parametrize(
    "options, words",
    [
        ({"detector": "meso4-df", "clip_step": 4}, "looks at single frames"),
        ({"clip_step": 0}, "stride of clips is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"precision": "float16"}, "not 'float16'"),
    ],
)
def test_options_that_do_not_fit_are_refused_at_once(tmp_path, small_video_resnet, options, words):
    from deepfake_nb.mesonet import Meso4

    torch.save(Meso4().state_dict(), tmp_path / "meso.pt")
    options = {"detector": "altfreezing", "device": "cpu"} | options
    weights = small_video_resnet if options["detector"] == "altfreezing" else tmp_path / "meso.pt"
    with pytest.raises(UsageError) as raised:
        score_paths(tmp_path, options.pop("detector"), weights, **options)
    assert words in str(raised.value)


# --- the video ResNet -------------------------------------------------------------------------------------------


def awake(network, spread=0.5):
    """A network whose blocks all take part and whose logits differ visibly."""
    with torch.no_grad():
        for module in network.modules():
            if hasattr(module, "branch2"):
                module.branch2.c_bn.weight.fill_(1.0)
        network.head.projection.weight.normal_(std=spread, generator=torch.Generator().manual_seed(0))
    return network.eval()


@pytest.fixture(scope="session")
def small_video_resnet(tmp_path_factory):
    """The file of a narrow network for small clips."""
    from deepfake_nb.video_resnet import VideoResNet, save_video_resnet

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    network = awake(VideoResNet(width=2, head="transformer", pooling="class"))
    save_video_resnet(path, network, "rendered people", clip_length=16, size=64, stride=2, threshold=0.35)
    return path


@pytest.fixture(scope="session")
def talking(tmp_path_factory):
    """A video of a rendered face, 40 frames, and those frames as they are read."""
    path = tmp_path_factory.mktemp("media") / "talking.mp4"
    write_video(path, render_video(random_identity(3), "studio", 40, size=224, seed=0).images, 25)
    return path


def test_a_network_trained_here_scores_as_it_was_trained(small_video_resnet, talking):
    from deepfake_nb.clips import cut_clip, pool_clips
    from deepfake_nb.faces import face_tracks
    from deepfake_nb.video_resnet import normalise_clips
    from deepfake_nb.weights import load_detector

    how = {"device": "cpu", "face_detector": CenterFace(threads=2), "precision": "float32", "clip_step": 4}
    (verdict,) = score_paths(talking, "altfreezing", small_video_resnet, **how)
    assert_contract(verdict)
    assert verdict.trained_on == "rendered people" and "own threshold is 0.35" in verdict.reason
    (track,) = face_tracks(talking, CenterFace(threads=2), crop_size=64, window=16)
    starts = [0, 4, 8, 9]
    clips = [cut_clip(track, start, 16, stride=2, size=64) for start in starts]
    with torch.inference_mode():
        network = load_detector("altfreezing", small_video_resnet).network
        scores = torch.sigmoid(network(normalise_clips(clips))).numpy()
    assert np.ptp(scores) > 1e-3, "clips must not all get the same score, or the comparison is void"
    assert verdict.score == pytest.approx(pool_clips(starts, scores), abs=1e-5)


def test_a_released_checkpoint_of_full_width_scores_a_video(talking, tmp_path):
    from deepfake_nb.video_resnet import VideoResNet

    torch.manual_seed(0)
    network = awake(VideoResNet(), spread=0.001)
    released = {f"module.network.resnet.{key}": tensor for key, tensor in network.state_dict().items()}
    torch.save({"epoch": 3, "model_state_dict": released}, tmp_path / "model.pth")
    detector = DETECTORS["altfreezing"]
    assert (detector.clip_length, detector.step, detector.input_size) == (32, 16, 224)
    write_video(tmp_path / "short.mp4", (frame.image for frame in read_frames(talking, max_frames=24)), 25)
    (verdict,) = score_paths(tmp_path / "short.mp4", "altfreezing", tmp_path / "model.pth", device="cpu")
    assert_contract(verdict)
    assert 0.01 < verdict.score < 0.99 and verdict.faces[0].n_frames == 24
    assert verdict.weights.startswith("model.pth (SHA-256 ") and "unknown" in verdict.trained_on


def test_weights_of_another_width_give_a_sentence(tmp_path):
    from deepfake_nb.video_resnet import VideoResNet

    torch.save(VideoResNet(width=8).state_dict(), tmp_path / "narrow.pth")
    with pytest.raises(InputError, match=r"of a video ResNet of width 8, and this one has width 64"):
        score_paths(tmp_path, "altfreezing", tmp_path / "narrow.pth")
    with pytest.raises(
        InputError, match=r"github\.com/ZhendongWang6/AltFreezing .* give the file with --weights"
    ):
        score_paths(tmp_path, "altfreezing")


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"usage": {"size": 1 << 20}}, "size = 1048576, which cannot be"),
        ({"usage": {"clip_length": "many"}}, "clip_length = 'many', which cannot be"),
        ({"usage": {"threshold": True}}, "threshold = True, which cannot be"),
        ({"settings": {"width": 10**6}}, "does not hold the network that it names"),
        ({"settings": {"width": "wide"}}, "cannot be built"),
        ({"settings": {"depth": 101}}, "cannot be built"),
        ({"kind": "altfreezing-2"}, "no network of kind 'altfreezing-2'"),
        ({"kind": None}, "cannot be read"),
        ({"kind": "meso4"}, "does not hold the network that it names|cannot be built"),
    ],
)
def test_a_file_that_lies_about_itself_is_refused(small_video_resnet, tmp_path, changed, words):
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(small_video_resnet, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        header = dict(file.metadata())
    (name,) = header
    header[name] = json.dumps(json.loads(header[name]) | changed)
    save_file(tensors, tmp_path / "lie.safetensors", header)
    with pytest.raises(InputError, match=words):
        score_paths(tmp_path, "altfreezing", tmp_path / "lie.safetensors")


def test_the_command_line_takes_a_stride(small_video_resnet, talking, tmp_path, capsys):
    from deepfake_nb.cli import main

    about = ["score", str(talking), "--detector", "altfreezing", "--weights", str(small_video_resnet)]
    run_main(main, [*about, "--stride", "4", "--json", str(tmp_path / "v.json")])
    (record,) = json.loads((tmp_path / "v.json").read_text())
    assert set(record) == CONTRACT and record["detector"] == "altfreezing" and record["score"] is not None
    assert "rendered people" in capsys.readouterr().out
    with pytest.raises(SystemExit) as left:
        main([*about, "--stride", "0"])
    assert left.value.code == 2 and "stride of clips is 0" in capsys.readouterr().err


def run_main(main, arguments):
    """Run the command line and let it end well."""
    try:
        main(arguments)
    except SystemExit as left:
        assert left.code in (0, None)


# --- several detectors ------------------------------------------------------------------------------------------


def ensemble_of(**options):
    """A detector of frames and one of clips, for white patches on black; the clips are half as sure."""
    clips = ClipDetector(
        "clips", lambda weights=None: Ready(ClipLightness(), "none", "nothing"), batch_size=3
    )
    how = {"device": "cpu", "face_detector": WhiteSquares(), "precision": "float32"}
    return MediaScorer([detector_of(Brightness()), clips], **how | options)


@pytest.fixture
def counted(monkeypatch):
    """How often faces are followed through a video."""
    from deepfake_nb import views

    calls, track = [], views.track_faces
    monkeypatch.setattr(views, "track_faces", lambda *given, **how: calls.append(how) or track(*given, **how))
    return calls


def test_a_panel_follows_people_once_and_agrees_with_its_members(counted, tmp_path):
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


def test_a_panel_leaves_pictures_to_those_who_can_judge_them(tmp_path):
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


def test_suspicious_seconds_are_where_the_forgery_was(quick, tmp_path):
    levels = [80] * 50 + [220] * 30 + [80] * 70
    write_video(tmp_path / "part.mp4", [patches(level) for level in levels], 25)
    verdict = quick.score(tmp_path / "part.mp4")
    (part,) = verdict.faces[0].suspicious
    assert part["start_s"] == pytest.approx(2.0, abs=0.25) and part["end_s"] == pytest.approx(3.2, abs=0.25)
    assert verdict.verdict == "real" and verdict.score < verdict.threshold


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
def test_panels_that_cannot_be_are_refused(tmp_path, detectors, options, words):
    with pytest.raises(UsageError, match=words):
        score_paths(tmp_path, detectors, **options)


# --- calibrated -------------------------------------------------------------------------------------------------


def textured(level, rng, tint=(0, 0, 0), spread=12):
    """A black picture with a patch of noise around a grey level."""
    image = patches(level, side=80).astype(float)
    inside = image.max(2) > 0
    image[inside] += rng.normal(scale=spread, size=(inside.sum(), 1)) + np.array(tint)
    return np.clip(np.where(inside[..., None], np.maximum(image, 65), 0), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """A folder of patches: those in fake/ are lighter on average."""
    folder, rng = tmp_path_factory.mktemp("known"), np.random.default_rng(0)
    for number in range(60):
        name, level = (("real", 105), ("fake", 150))[number % 2]
        save(folder / name / f"{number:02}.png", textured(level + rng.normal(scale=18), rng))
    return folder


@pytest.fixture(scope="module")
def calibrated(known):
    """A calibration of the detector of brightness on these patches."""
    scorer = MediaScorer(detector_of(Brightness()), device="cpu", face_detector=WhiteSquares())
    table, left_out = gather(find_labelled_media(known), scorer)
    assert not left_out and len(table) == 60
    (found,), _ = calibrate(table, scorer, about="patches", draws=40)
    return found


def scorer_with(calibration, **options):
    return MediaScorer(detector_of(Brightness()), device="cpu", face_detector=WhiteSquares(), calibration=calibration,
                       **options)  # fmt: skip


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
    from dataclasses import replace

    save(tmp_path / "face.png", textured(150, np.random.default_rng(0)))
    write_video(tmp_path / "face.mp4", [patches(150)] * 20, 25)
    others = replace(calibrated, weights={"test": "0" * 64})
    verdict = scorer_with(others).score(tmp_path / "face.png")
    assert_contract(verdict)
    assert "the calibration is not used: it belongs to other weights of 'test'" in verdict.reason
    video = scorer_with(calibrated).score(tmp_path / "face.mp4")
    assert_contract(video)
    assert "the calibration is not used: it is not for videos" in video.reason


def test_a_panel_is_calibrated_as_one_and_a_part_of_it_as_that_part(tmp_path):
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


# --- detectors of several tasks ---------------------------------------------------------------------------------


class Colour(torch.nn.Module):
    """Logit 0 where the middle of a crop has 0.5 of one colour, higher where it has more; notes how much it was shown."""

    def __init__(self, channel):
        super().__init__()
        self.channel, self.shown = channel, 0

    def forward(self, faces):
        self.shown += len(faces)
        return 10 * (faces[:, self.channel, 96:160, 96:160].mean(dim=(1, 2)) - 0.5)


def two_tasks(*calibrations, **rules):
    """A ensemble for which what is red is an edited face, and what is blue a generated one."""
    members = [
        Detector(
            name, lambda weights=None, c=channel: Ready(Colour(c), "none", "nothing"), task=task, **rules
        )
        for name, channel, task in (("red", 0, "edited"), ("blue", 2, "generated"))
    ]
    return MediaScorer(members, device="cpu", face_detector=WhiteSquares(), calibration=list(calibrations))


def level_of(score):
    """The grey level that gets a score."""
    return 255 * (0.5 + np.log(score / (1 - score)) / 10)


RED, BLUE = (230, 80, 80), (80, 80, 230)
DARK = (80, 80, 80)


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
    from dataclasses import replace

    ((name, plain),) = believed[0].combinations.items()
    careful = replace(believed[0], combinations={name: replace(plain, margin=1.0)})
    for score, words in ((0.6, ["fake", "abstain"]), (0.4, ["real", "real"]), (0.9, ["fake", "fake"])):
        path = save(tmp_path / "face.png", patches(level_of(score)))
        assert [scorer_with(one).score(path).verdict for one in (believed[0], careful)] == words


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
    assert alone.verdict == "abstain" and "judges single pictures, and this is a video" in alone.reason
    assert MediaScorer(pictures, **how).score(tmp_path / "face.png").score is not None


def test_a_camera_is_watched_by_the_detectors_of_videos(of_red, tmp_path):
    from dataclasses import replace

    from deepfake_nb.camera import watch

    write_video(tmp_path / "call.mp4", [patches((230, 80, 230))] * 12, 25)
    ensemble = two_tasks(replace(of_red, kind="video"))
    for loaded in ensemble.detectors[1:]:
        loaded.detector = replace(loaded.detector, kinds=("picture",))
    assert {moment.word for moment in watch(tmp_path / "call.mp4", ensemble).moments} == {"fake"}
    ensemble.detectors = ensemble.detectors[1:]
    with pytest.raises(UsageError, match="blue judges images only"):
        watch(tmp_path / "call.mp4", ensemble)


@pytest.mark.parametrize(
    "is_there, names", [(True, ("edited-faces", "generated-faces")), (False, ("small-faces",))]
)
def test_who_judges_where_nobody_is_named_depends_on_what_is_cached(monkeypatch, is_there, names):
    from deepfake_nb import score
    from deepfake_nb.weights import Whereabouts

    asked, opened = [], []
    monkeypatch.setattr(
        score, "whereabouts", lambda name: asked.append(name) or Whereabouts("cache", is_there)
    )
    monkeypatch.setattr(score, "MediaScorer", lambda detectors, *_, **__: opened.extend(detectors))
    assert score.choose_default_detectors() == names and asked == ["clip-vit-b16"]
    open_scorer()
    open_scorer(["default", "meso4-df"])
    assert opened == [*names, *names, "meso4-df"]
    assert bool(score.recommend_detectors(["small-faces"])) == (not is_there)
    assert not score.recommend_detectors(["edited-faces", "meso4-df"])


def test_the_detectors_of_real_people_have_their_tasks():
    tasks = {name: (detector.task, detector.kinds) for name, detector in DETECTORS.items() if detector.task}
    both = ("picture", "video")
    assert tasks == {"edited-faces": ("edited", both), "generated-faces": ("generated", ("picture",)),
                     "small-faces": ("edited", both)}  # fmt: skip


# --- the command line -------------------------------------------------------------------------------------------


@pytest.fixture
def with_test_detector(monkeypatch):
    """The command line with the detector of brightness for white patches."""
    from deepfake_nb import score

    monkeypatch.setitem(DETECTORS, "test", detector_of(Brightness()))
    monkeypatch.setattr(score, "CenterFace", WhiteSquares)


def status_of(*arguments):
    from deepfake_nb.cli import main

    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return left.value.code or 0


def test_calibrate_and_score_on_the_command_line(with_test_detector, known, tmp_path, capsys):
    out = tmp_path / "own.json"
    assert (
        status_of("calibrate", known, "--detector", "test", "--out", out, "--about", "patches of mine") == 0
    )
    said = capsys.readouterr().out
    assert "60 pictures of 60 people, 30 of them fake: patches of mine" in said and "is called fake" in said
    save(tmp_path / "media" / "light.png", textured(168, np.random.default_rng(0)))
    about = (
        "--detector",
        "test",
        "--calibration",
        out,
        "--json",
        tmp_path / "v.json",
        "--csv",
        tmp_path / "v.csv",
    )
    assert status_of("score", tmp_path / "media", *about, "--false-alarm-rate", "0.2") == 0
    said = capsys.readouterr().out
    assert "probability" in said and "no proof" in said and "Of 1 file, 1 called fake" in said
    (record,) = json.loads((tmp_path / "v.json").read_text())
    assert record["verdict"] == "fake" and record["calibration"].endswith("patches of mine")
    with open(tmp_path / "v.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["interval_low"]) <= float(row["probability"]) <= float(row["interval_high"])


def test_exit_status_tells_usage_from_nothing_scored(with_test_detector, tmp_path, capsys):
    save(tmp_path / "face.png", patches(200))
    write_video(tmp_path / "wall.mp4", [patches()] * 3, 25)
    assert status_of("score", tmp_path / "face.png", tmp_path / "wall.mp4", "--detector", "test") == 0
    assert status_of("score", tmp_path / "wall.mp4", "--detector", "test") == 3
    assert status_of("score") == 2 and status_of("score", tmp_path, "--camera", "0") == 2
    assert status_of("score", tmp_path, "--frames", "3") == 2
    assert status_of("score", tmp_path, "--detector", "test", "--calibration", tmp_path / "absent.json") == 3
    assert status_of("score", tmp_path, "--detector", "test", "--false-alarm-rate", "0") == 2
    assert status_of("calibrate", tmp_path, "--detector", "test", "--out", tmp_path / "c.json") == 3
    assert "no media file in" in capsys.readouterr().err


def test_a_score_without_a_calibration_counts_as_scored_and_is_shown(with_test_detector, tmp_path, capsys):
    for number in range(2):
        save(tmp_path / "media" / f"{number}.png", patches(200))
    assert status_of("score", tmp_path / "media", "--detector", "test") == 0
    said = capsys.readouterr().out
    lines = [line for line in said.splitlines() if line.startswith("abstain")]
    assert len(lines) == 2 and all(line.endswith("for a forgery, not calibrated") for line in lines)
    assert "Of 2 files, 0 called fake, 0 called real, 2 without a verdict." in said
    assert said.count("Not calibrated: the score is no probability") == 1
    assert said.count("`deepfake-nb calibrate` fits one") == 1 and "weights fetch" not in said


def test_the_line_of_a_file_names_the_task(with_test_detector, believed_file, tmp_path, monkeypatch, capsys):
    from dataclasses import replace

    save(tmp_path / "media" / "light.png", patches(230))
    for task, words in (("edited", "an edited face"), ("generated", "a generated face"), (None, "a forgery")):
        monkeypatch.setitem(DETECTORS, "test", replace(DETECTORS["test"], task=task))
        how = ("--detector", "test", "--calibration", believed_file, "--json", tmp_path / "v.json")
        assert status_of("score", tmp_path / "media", *how) == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("fake")]
        assert f"probability of {words} " in line
        (record,) = json.loads((tmp_path / "v.json").read_text())
        assert record["task"] == task and 0 < record["real_below"] <= record["threshold"] < 1


def test_what_is_the_same_for_all_files_is_said_once_for_each_kind(
    with_test_detector, believed_file, tmp_path, capsys
):
    for number in range(2):
        save(tmp_path / "media" / f"{number}.png", patches(230))
        write_video(tmp_path / "media" / f"{number}.mp4", [patches(230)] * 20, 25)
    how = ("--detector", "test", "--calibration", believed_file)
    assert status_of("score", tmp_path / "media", *how) == 0
    assert capsys.readouterr().out.count("and above is called fake") == 1, (
        "both kinds have the same threshold"
    )
    calibration = read_calibrations(believed_file)["picture"]
    write_calibrations(tmp_path / "c.json", calibration)
    assert status_of("score", tmp_path / "media", *how[:3], tmp_path / "c.json") == 0
    said = capsys.readouterr().out
    assert (
        "Pictures, a forgery: 0." in said
        and said.count("Videos, a forgery: Not calibrated (the calibration") == 1
    )


@pytest.mark.parametrize("is_there", [True, False])
def test_after_the_small_network_the_better_detectors_are_named_once(
    with_test_detector, tmp_path, monkeypatch, capsys, is_there
):
    from dataclasses import replace

    from deepfake_nb import score
    from deepfake_nb.weights import Whereabouts

    small = replace(DETECTORS["test"], name="small-faces")
    monkeypatch.setitem(DETECTORS, "small-faces", small)
    monkeypatch.setattr(score, "whereabouts", lambda _: Whereabouts("cache", is_there))
    for number in range(2):
        save(tmp_path / "media" / f"{number}.png", patches(230))
    assert status_of("score", tmp_path / "media", "--detector", "small-faces") == 0
    said = capsys.readouterr().out
    assert said.count("`deepfake-nb weights fetch clip-vit-b16` (78 MB, once)") == (not is_there)


def test_the_list_of_weights_fits_a_terminal_and_one_is_shown_in_full(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert status_of("weights", "list") == 0
    said = capsys.readouterr().out
    lines = said.splitlines()
    starts = [at for at, line in enumerate(lines) if line.split(" ")[0] in REGISTRY]
    assert len(starts) == len(REGISTRY) and max(map(len, lines)) <= 80
    ends = [*starts[1:], next(at for at, line in enumerate(lines) if line.startswith("All about one"))]
    assert max(end - start for start, end in zip(starts, ends, strict=True)) <= 2, said
    for name, entry in REGISTRY.items():
        assert status_of("weights", "show", name) == 0
        shown = "".join(capsys.readouterr().out.split())
        assert all("".join(text.split()) in shown for text in (entry.source, entry.licence)), shown
    assert status_of("weights", "show", "meso9") == 2


def test_what_would_help_is_said_once_a_reason_and_where_nothing_was_scored_too(
    with_test_detector, tmp_path, capsys
):
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / name, [patches()] * 3, 25)
    (tmp_path / "empty.png").touch()
    assert status_of("score", tmp_path, "--detector", "test") == 3
    said, complaint = capsys.readouterr()
    assert said.count("No face was found in 3 frames looked at.") == 2
    assert said.count("seen from the front, upright") == 1 and "is empty (0 bytes). Copy" in said
    assert complaint == "Error: Nothing could be scored; the lines above say why.\n", (
        "a live line is for terminals"
    )


def test_what_a_real_verdict_does_not_cover_is_on_its_line(
    with_test_detector, believed_file, tmp_path, capsys
):
    """Half a film and the first picture of an animation must not pass for a look at all of it."""
    whole = write_video(tmp_path / "whole.mp4", [patches(80 + number % 9) for number in range(50)], 25)
    (tmp_path / "half.mp4").write_bytes(whole.read_bytes()[: whole.stat().st_size * 9 // 10])
    whole.unlink()
    pictures = [Image.fromarray(patches(level)) for level in (80, 240)]
    pictures[0].save(tmp_path / "moving.gif", save_all=True, append_images=pictures[1:])
    how = ("--detector", "test", "--calibration", believed_file, "--json", tmp_path / "v.json")
    assert status_of("score", tmp_path, *how) == 0
    said = capsys.readouterr().out
    lines = {
        line.split()[1].rpartition("/")[2]: line for line in said.splitlines() if line.startswith("real")
    }
    assert set(lines) == {"half.mp4", "moving.gif"}
    assert "before the length that it states" in lines["half.mp4"]
    assert "only its first frame was looked at" in lines["moving.gif"] and "means that no sign" in said
    assert not any("above is called fake" in line for line in lines.values()), "once at the end is enough"
    assert all(
        "above is called fake" in record["reason"] for record in json.loads((tmp_path / "v.json").read_text())
    )


def test_an_abstention_with_a_score_is_no_failure(with_test_detector, calibrated, tmp_path):
    write_calibrations(tmp_path / "c.json", calibrated)
    save(tmp_path / "odd.png", textured(150, np.random.default_rng(2), tint=(-40, 60, -40), spread=60))
    how = ("--detector", "test", "--calibration", tmp_path / "c.json", "--json", tmp_path / "v.json")
    assert status_of("score", tmp_path / "odd.png", *how) == 0
    assert json.loads((tmp_path / "v.json").read_text())[0]["verdict"] == "abstain"


def test_a_kind_of_too_few_people_is_left_out_and_the_other_calibrated(
    with_test_detector, known, tmp_path, capsys
):
    for path in known.rglob("*.png"):
        save(tmp_path / "media" / path.relative_to(known), np.array(Image.open(path)))
    for number, name in enumerate(("real", "fake")):
        for copy in range(2):
            write_video(tmp_path / "media" / name / f"{copy}.mp4", [patches(105 + 45 * number)] * 8, 25)
    how = ("calibrate", tmp_path / "media", "--detector", "test", "--out", tmp_path / "c.json")
    assert status_of(*how) == 0
    said = capsys.readouterr().out
    assert "There is no calibration for videos: What 4 people look like says little of others" in said
    assert "60 pictures of 60 people" in said and set(read_calibrations(tmp_path / "c.json")) == {"picture"}
    for path in [*(tmp_path / "media").rglob("*.png"), tmp_path / "c.json"]:
        path.unlink()
    assert status_of(*how) == 3 and "What 4 people look like" in capsys.readouterr().err
    assert not (tmp_path / "c.json").exists()


def test_options_that_are_wrong_for_every_kind_are_told_as_such(with_test_detector, tmp_path):
    rows = [(str(n), n % 2, 0.5, name, "picture", str(n)) for n in range(40) for name in "abcde"]
    table = pd.DataFrame(rows, columns=["media_id", "label", "score", "detector", "kind", "person"])
    scorer = MediaScorer(detector_of(Brightness()), device="cpu", face_detector=WhiteSquares())
    with pytest.raises(UsageError, match="At most 4 detectors"):
        calibrate(table, scorer, "made numbers")
    with pytest.raises(InputError, match="No media file got a score"):
        calibrate(table.iloc[:0], scorer, "nothing")


def test_predictions_can_be_calibrated_without_media(with_test_detector, tmp_path, capsys):
    rng = np.random.default_rng(0)
    lines = ["media_id,label,score"] + [
        f"{n},{n % 2},{sigmoid(n % 2 * 2 - 1 + rng.normal()):.4f}" for n in range(40)
    ]
    (tmp_path / "p.csv").write_text("\n".join(lines))
    how = ("calibrate", tmp_path / "p.csv", "--detector", "test", "--out", tmp_path / "c.json")
    assert status_of(*how) == 2 and "--kind" in capsys.readouterr().err
    assert (
        status_of(*how, "--kind", "picture") == 0
        and "nothing will be called unlike" in capsys.readouterr().out
    )
    assert read_calibrations(tmp_path / "c.json")["picture"].familiarity is None


def test_files_of_verdicts_appear_whole_or_not_at_all(quick, tmp_path):
    def broken():
        yield quick.score(save(tmp_path / "face.png", patches(200)))
        raise RuntimeError("the power fails")

    with pytest.raises(RuntimeError):
        write_verdicts(broken(), tmp_path / "v.json", tmp_path / "v.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["face.png"]
    write_verdicts([], tmp_path / "v.json")
    assert json.loads((tmp_path / "v.json").read_text()) == []


@pytest.mark.parametrize(
    "fault, status", [(KeyboardInterrupt, {1, 130}), (RuntimeError, None), (InputError, {3})]
)
def test_a_report_that_is_broken_off_has_an_index_of_what_was_finished(
    with_test_detector, believed_file, tmp_path, monkeypatch, capsys, fault, status
):
    for number in range(3):
        save(tmp_path / "media" / f"{number}.png", patches(200))
    examine = MediaScorer.examine

    def stop_at_the_third(self, path, keep=3):
        if Path(path).name == "2.png":
            raise fault("the power fails")
        return examine(self, path, keep)

    monkeypatch.setattr(MediaScorer, "examine", stop_at_the_third)
    how = ("score", tmp_path / "media", "--detector", "test", "--report", tmp_path / "r")
    how += ("--json", tmp_path / "v.json", "--calibration", believed_file)
    if status is None:
        with pytest.raises(fault):
            status_of(*how)
    else:
        assert status_of(*how) in status
    index = (tmp_path / "r" / "index.html").read_text()
    assert "2 files. Looks forged: 2." in index and "The run was broken off" in index
    pages = {path.name for path in (tmp_path / "r").glob("*.html")} - {"index.html"}
    assert len(pages) == 2 and all(f'href="{name}"' in index for name in pages)
    assert not (tmp_path / "v.json").exists(), "a list of verdicts appears whole or not at all"


# --- a camera ---------------------------------------------------------------------------------------------------


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


def test_without_a_camera_there_is_a_sentence(with_test_detector, tmp_path, capsys):
    assert status_of("score", "--camera", "63", "--detector", "test") == 3
    assert "The camera 63 gives no picture" in capsys.readouterr().err
    write_video(tmp_path / "empty.mp4", [patches()] * 4, 25)
    assert status_of("score", "--camera", tmp_path / "empty.mp4", "--detector", "test") == 3
    assert "no face was seen" in capsys.readouterr().err


def test_ctrl_c_ends_watching_with_a_summary(quick, tmp_path):
    from deepfake_nb.camera import watch

    write_video(tmp_path / "call.mp4", [patches(200)] * 20, 25)

    def tell(moment):
        if moment.time_s > 0.3:
            raise KeyboardInterrupt

    watched = watch(tmp_path / "call.mp4", quick, tell=tell)
    assert watched.frames == 9 and watched.highest_score > 0.9 and watched.share_fake == 1


def test_the_highest_score_is_not_forgotten_when_its_moment_is(quick, tmp_path, monkeypatch):
    from deepfake_nb import camera

    monkeypatch.setattr(camera.RunningTotals.__init__, "__defaults__", (10,))
    write_video(tmp_path / "call.mp4", [patches(230)] * 20 + [patches()] * 5 + [patches(90)] * 100, 25)
    watched = camera.watch(tmp_path / "call.mp4", quick, window_s=0.2)
    assert watched.frames == 125 and watched.frames_with_face == 120 and len(watched.moments) == 10
    assert watched.highest_score > 0.9 and watched.highest_at_s < 0.8
    assert 0.1 < watched.share_fake < 0.3


def test_a_window_shorter_than_the_time_between_portraits_knows_a_stranger(calibrated, tmp_path):
    from dataclasses import replace

    from deepfake_nb.camera import watch

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
    from deepfake_nb.camera import watch

    left, right = patches(90), np.roll(patches(220), 150, axis=1)
    write_video(tmp_path / "call.mp4", [left] * 20 + [right] * 5, 25)
    moments = watch(tmp_path / "call.mp4", quick).moments
    assert moments[19].score < 0.3 and moments[20].score > 0.8, "the score is not that of the new face alone"


# --- real media -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def released(shared_data):
    weights = shared_data / "mesonet" / "weights" / "Meso4_DF.h5"
    calibration = made_calibration(
        "meso4-df", kind="video", weights={"meso4-df": REGISTRY["meso4-df"].sha256}
    )
    how = {"sampling": Sampling(frames_per_second=1), "calibration": calibration}
    return MediaScorer("meso4-df", weights, **how), shared_data


def test_meso4_tells_a_face_swap_from_its_target_video(released):
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


# --- what comes with the package ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped():
    """The detectors of rendered people, with the calibrations that come with the package."""
    return open_scorer(RENDERED, device="cpu", face_detector=CenterFace(threads=2))


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


def test_living_people_on_film_are_unlike_the_shipped_calibration(shipped, shared_data):
    verdicts = list(score_with(shipped, shared_data / "ffpp", shared_data / "dfdc"))
    judged = [verdict for verdict in verdicts if verdict.kind == "video" and verdict.score is not None]
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

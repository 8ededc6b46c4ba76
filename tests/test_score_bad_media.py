"""Media that cannot be scored, or only with difficulty: each gets a verdict with a reason, and the batch goes on."""

from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from layouts import WhiteSquares
from PIL import Image
from scoring import Brightness, assert_contract, detector_of, patches, save, score_with

from deepfake_nb.media.faces import CenterFace
from deepfake_nb.media.video import write_video
from deepfake_nb.scoring.score import MediaScorer, score_paths
from deepfake_nb.scoring.views import cut_as_mesonet


@pytest.fixture(scope="module")
def scorer():
    return MediaScorer(detector_of(Brightness()), device="cpu", face_detector=CenterFace(threads=2))


def write_sound(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        for start in range(0, 16000, 1024):
            wave = np.sin(np.arange(start, start + 1024) / 20).astype(np.float32)[None]
            frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_damaged_and_mislabelled_files_do_not_stop_a_batch(scorer, face, tmp_path):
    good = write_video(tmp_path / "whole.mp4", [face] * 12, 12)
    content = good.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) // 2])
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.mp4").write_text("This is no video.")
    (tmp_path / "text.jpg").write_text("This is no image.")
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


def test_a_crop_beyond_the_border_is_mirrored_and_a_huge_face_stays_small_in_memory():
    landmarks = np.float32([[30, 30], [70, 30], [50, 50], [35, 75], [65, 75]])
    image = np.full((60, 60, 3), 200, np.uint8)
    assert np.all(cut_as_mesonet(image, np.float32([0, 0, 100, 100]), landmarks) == 200)
    assert np.all(cut_as_mesonet(image, np.float32([-90, -90, -10, -10]), landmarks - 90) == 200)
    huge = np.full((4000, 4000, 3), 90, np.uint8)
    crop = cut_as_mesonet(huge, np.float32([0, 0, 3900, 3900]), landmarks * 39)
    assert crop.shape == (256, 256, 3) and np.all(crop == 90)


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

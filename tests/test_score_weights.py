"""Which detectors there are, and the weight files that they accept or refuse."""

import json

import cv2
import numpy as np
import pytest
import torch
from scoring import assert_contract, awake, save

from deepfake_nb.media.faces import CenterFace
from deepfake_nb.media.video import read_frames, write_video
from deepfake_nb.networks.weights import REGISTRY
from deepfake_nb.scoring.score import DETECTORS, MediaScorer, open_scorer, score_paths
from deepfake_nb.study.files import InputError, UsageError


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
    from deepfake_nb.networks.mesonet import Meso4

    torch.save(Meso4().state_dict(), tmp_path / "mine.pt")
    save(tmp_path / "face.png", face)
    (verdict,) = score_paths(tmp_path / "face.png", "meso4-df", tmp_path / "mine.pt", device="cpu")
    assert_contract(verdict)
    assert verdict.weights.startswith("mine.pt (SHA-256 ") and "unknown" in verdict.trained_on
    assert 0 < verdict.score < 1


@pytest.mark.slow
def test_xception_scores_by_its_own_preprocessing(tmp_path, face):
    from deepfake_nb.networks.xception import Xception, to_deepfakebench

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
    from deepfake_nb.networks.mesonet import Meso4

    torch.save(Meso4().state_dict(), tmp_path / "meso.pt")
    options = {"detector": "altfreezing", "device": "cpu"} | options
    weights = small_video_resnet if options["detector"] == "altfreezing" else tmp_path / "meso.pt"
    with pytest.raises(UsageError) as raised:
        score_paths(tmp_path, options.pop("detector"), weights, **options)
    assert words in str(raised.value)


def test_a_network_trained_here_scores_as_it_was_trained(small_video_resnet, talking):
    from deepfake_nb.learning.clips import cut_clip, pool_clips
    from deepfake_nb.media.faces import face_tracks
    from deepfake_nb.networks.video_resnet import normalise_clips
    from deepfake_nb.networks.weights import load_detector

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


@pytest.mark.slow
def test_a_released_checkpoint_of_full_width_scores_a_video(talking, tmp_path):
    from deepfake_nb.networks.video_resnet import VideoResNet

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
    from deepfake_nb.networks.video_resnet import VideoResNet

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


@pytest.mark.parametrize(
    "is_there, names", [(True, ("edited-faces", "generated-faces")), (False, ("small-faces",))]
)
def test_who_judges_where_nobody_is_named_depends_on_what_is_cached(monkeypatch, is_there, names):
    from deepfake_nb.networks.weights import Whereabouts
    from deepfake_nb.scoring import score

    asked, opened = [], []
    monkeypatch.setattr(
        score, "locate_weights", lambda name: asked.append(name) or Whereabouts("cache", is_there)
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

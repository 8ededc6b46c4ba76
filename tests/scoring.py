"""Detectors whose scores can be predicted, media for them, and what holds for every verdict."""

import json

import numpy as np
import torch
from layouts import WhiteSquares
from PIL import Image

from deepfake_nb.networks.video_resnet import VideoResNet, save_video_resnet
from deepfake_nb.scoring.fit_calibration import calibrate, find_labelled_media, gather
from deepfake_nb.scoring.score import MediaScorer, Verdicts
from deepfake_nb.scoring.views import ClipDetector, Detector, Ready

CONTRACT = set(
    "path verdict score probability interval reason detector weights trained_on faces kind threshold "
    "false_alarm_rate real_below task calibration detectors reason_code footnote advice origin".split()
)


FACE = {
    "track", "n_frames", "score", "timeline", "scores", "probability", "interval", "threshold", "real_below", "distance",
    "task", "suspicious",
}  # fmt: skip


class Brightness(torch.nn.Module):
    """Logit 0 where the middle of a crop is grey 0.5, higher where it is brighter: an answer that can be foreseen."""

    def forward(self, faces):
        return 10 * (faces[..., 96:160, 96:160].mean(dim=(1, 2, 3)) - 0.5)


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


class Colour(torch.nn.Module):
    """Logit 0 where the middle of a crop has 0.5 of one colour, higher where it has more; notes how much it was shown."""

    def __init__(self, channel):
        super().__init__()
        self.channel, self.shown = channel, 0

    def forward(self, faces):
        self.shown += len(faces)
        return 10 * (faces[:, self.channel, 96:160, 96:160].mean(dim=(1, 2)) - 0.5)


def detector_of(network, **rules):
    return Detector("test", lambda weights=None: Ready(network, "none", "nothing"), **rules)


def scorer_with(calibration, **options):
    return MediaScorer(detector_of(Brightness()), device="cpu", face_detector=WhiteSquares(), calibration=calibration,
                       **options)  # fmt: skip


def ensemble_of(**options):
    """A detector of frames and one of clips, for white patches on black; the clips are half as sure."""
    clips = ClipDetector(
        "clips", lambda weights=None: Ready(ClipLightness(), "none", "nothing"), batch_size=3
    )
    how = {"device": "cpu", "face_detector": WhiteSquares(), "precision": "float32"}
    return MediaScorer([detector_of(Brightness()), clips], **how | options)


def patches(*levels, side=64, width=320, height=120):
    """A black image with a patch of each grey level."""
    image = np.zeros((height, width, 3), np.uint8)
    for number, level in enumerate(levels):
        image[20 : 20 + side, 20 + 100 * number : 20 + 100 * number + side] = level
    return image


def textured(level, rng, tint=(0, 0, 0), spread=12):
    """A black image with a patch of noise around a grey level."""
    image = patches(level, side=80).astype(float)
    inside = image.max(2) > 0
    image[inside] += rng.normal(scale=spread, size=(inside.sum(), 1)) + np.array(tint)
    return np.clip(np.where(inside[..., None], np.maximum(image, 65), 0), 0, 255).astype(np.uint8)


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **options)
    return path


def score_with(scorer, *paths):
    """What `score_paths` gives, by a scorer that is there already."""
    return Verdicts(scorer, paths)


def logit_of(level):
    return 10 * (level / 255 - 0.5)


def sigmoid(logit):
    return 1 / (1 + np.exp(-logit))


def level_of(score):
    """The grey level that gets a score."""
    return 255 * (0.5 + np.log(score / (1 - score)) / 10)


RED, BLUE = (230, 80, 80), (80, 80, 230)


DARK = (80, 80, 80)


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


def two_tasks(*calibrations, **rules):
    """A ensemble for which what is red is an edited face, and what is blue a generated one."""
    members = [
        Detector(
            name, lambda weights=None, c=channel: Ready(Colour(c), "none", "nothing"), task=task, **rules
        )
        for name, channel, task in (("red", 0, "edited"), ("blue", 2, "generated"))
    ]
    return MediaScorer(members, device="cpu", face_detector=WhiteSquares(), calibration=list(calibrations))


def awake(network, spread=0.5):
    """A network whose blocks all take part and whose logits differ visibly."""
    with torch.no_grad():
        for module in network.modules():
            if hasattr(module, "branch2"):
                module.branch2.c_bn.weight.fill_(1.0)
        network.head.projection.weight.normal_(std=spread, generator=torch.Generator().manual_seed(0))
    return network.eval()


def save_small_video_resnet(path):
    """The file of a narrow network for small clips."""
    torch.manual_seed(0)
    network = awake(VideoResNet(width=2, head="transformer", pooling="class"))
    save_video_resnet(path, network, "rendered people", clip_length=16, size=64, stride=2, threshold=0.35)
    return path


def save_known_patches(folder):
    """A folder of patches: those in fake/ are lighter on average."""
    rng = np.random.default_rng(0)
    for number in range(60):
        name, level = (("real", 105), ("fake", 150))[number % 2]
        save(folder / name / f"{number:02}.png", textured(level + rng.normal(scale=18), rng))
    return folder


def calibrate_brightness(known):
    """A calibration of the detector of brightness on these patches."""
    scorer = scorer_with(None)
    table, left_out = gather(find_labelled_media(known), scorer)
    assert not left_out and len(table) == 60
    (found,), _ = calibrate(table, scorer, about="patches", draws=40)
    return found

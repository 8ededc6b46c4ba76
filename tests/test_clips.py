"""Clips of face tracks: every start and length, stores that do not fit, caches, and what a network is shown."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest
import torch

from deepfake_nb.data.adapters import COLUMNS
from deepfake_nb.data.builds import RESULT_COLUMNS
from deepfake_nb.learning.clips import (
    ClipSet,
    clip_predictions,
    clip_rows,
    clip_starts,
    cut_clip,
    frame_timeline,
    inference_precision,
    pool_clips,
)
from deepfake_nb.learning.training import Trainer, TrainingSettings
from deepfake_nb.media.faces import (
    FaceTrack,
    align_clip,
    fit_similarity,
    standard_face,
    track_transforms,
    transform_points,
    warp,
    write_face_tracks,
)
from deepfake_nb.media.images import IMAGENET_NORMALISATION
from deepfake_nb.networks.video_resnet import VideoResNet, normalise_clips
from deepfake_nb.study.files import InputError, UsageError, sha256_of

pytestmark = pytest.mark.usefixtures("one_thread")


# --- starts and rows ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 3])
def test_starts_are_even_end_flush_and_leave_out_no_frame(stride):
    for n_frames, length, step in itertools.product(
        (11, 12, 31, 32, 33, 64, 65, 100), (1, 8, 32), (1, 7, 16, 50)
    ):
        starts = clip_starts(n_frames, length, step, stride)
        span = (length - 1) * stride + 1
        assert starts[0] == 0 and np.all(np.diff(starts) > 0)
        assert np.all(np.diff(starts)[:-1] == step) and np.all(np.diff(starts) <= step)
        assert starts[-1] + span == n_frames if n_frames > span else starts.tolist() == [0]
        if stride == 1 and step <= length:
            seen = np.concatenate([clip_rows(n_frames, start, length) for start in starts])
            assert set(seen) == set(range(n_frames))


@pytest.mark.parametrize("n_frames", [1, 2, 3, 11, 20, 31, 32, 45])
def test_a_short_track_is_mirrored_as_the_released_code_does(n_frames):
    inner = list(range(n_frames))
    behind = inner[1:-1][::-1] + inner
    padded = inner + (behind * 40)[: max(0, 32 - n_frames)]
    assert clip_rows(n_frames, 0).tolist() == padded[:32]


def test_rows_of_a_clip_that_reaches_beyond_the_end_come_back():
    assert clip_rows(10, 8, 5).tolist() == [8, 9, 8, 7, 6]
    assert clip_rows(7, 0, 5, stride=3).tolist() == [0, 3, 6, 3, 0]


def test_eleven_frames_are_needed_or_a_clip_full():
    with pytest.raises(InputError, match="10 frames is too short for clips of 32: 11 are needed"):
        clip_starts(10)
    with pytest.raises(InputError, match="3 are needed"):
        clip_starts(2, length=3)
    assert clip_starts(3, length=3).tolist() == [0]


@pytest.mark.parametrize("options", [{"length": 0}, {"step": 0}, {"stride": -1}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(UsageError, match="give 1 or more"):
        clip_starts(100, **options)


@pytest.mark.parametrize("start", [-1, 40])
def test_a_clip_outside_of_its_track_is_refused(start):
    with pytest.raises(InputError, match="no clip that starts at frame"):
        clip_rows(40, start)


# --- pixels ---------------------------------------------------------------------------------------------------------


def moving_face(n_frames, side=160):
    """Frames of soft noise, and landmarks and boxes of a face that moves and turns over them."""
    import cv2

    rng = np.random.default_rng(0)
    frames = [
        cv2.GaussianBlur(rng.integers(0, 256, (side, side, 3), dtype=np.uint8), (0, 0), 6)
        for _ in range(n_frames)
    ]
    frames = [cv2.normalize(frame, None, 0, 255, cv2.NORM_MINMAX) for frame in frames]
    at, points = np.arange(n_frames)[:, None, None], standard_face(0.3 * side)
    turn = 0.05 * np.sin(at[:, 0, 0] / 5)
    rotation = np.stack([np.cos(turn), -np.sin(turn), np.sin(turn), np.cos(turn)], -1).reshape(-1, 2, 2)
    landmarks = (
        points @ rotation.swapaxes(1, 2) + 0.35 * side + np.concatenate([0.2 * at, 3 * np.sin(at / 7)], -1)
    )
    low, high = landmarks.min(1) - 6, landmarks.max(1) + 6
    return frames, np.float32(landmarks), np.float32(np.concatenate([low, high], -1))


def track_of(frames, landmarks, boxes, size=64):
    """A stored track, aligned by windows, of such frames."""
    n = len(frames)
    transforms = track_transforms(landmarks, size)
    crops = np.stack([warp(*pair, size) for pair in zip(frames, transforms, strict=True)])
    scores, found = np.ones(n, np.float32), np.ones(n, bool)
    return FaceTrack(np.arange(n), np.arange(n) / 25, boxes, landmarks, scores, found, transforms, crops)


@pytest.fixture(scope="module")
def moving():
    return moving_face(60)


def test_a_clip_is_what_altfreezing_cuts_from_the_frames_themselves(moving):
    frames, landmarks, boxes = moving
    track = track_of(*moving)
    rows = slice(10, 42)
    expected = align_clip(frames[rows], boxes[rows], landmarks[rows], 64)[0]
    clip = cut_clip(track, 10, 32)
    middle = slice(16, 48)
    apart = np.abs(clip[:, middle, middle].astype(float) - expected[:, middle, middle])
    kept = np.abs(track.crops[rows, middle, middle].astype(float) - expected[:, middle, middle])
    assert apart.mean() < 2
    assert apart.mean() < 0.5 * kept.mean(), (
        "the stored crops must be aligned otherwise, or nothing is tested"
    )


def test_a_padded_clip_is_fitted_to_the_frames_it_shows_and_repeats_them(moving):
    track = track_of(*(part[:20] for part in moving))
    clip = cut_clip(track, 0, 32)
    assert np.array_equal(clip[20:], clip[18:6:-1])
    rows = clip_rows(20, 0)
    shown = fit_similarity(track.landmarks[rows], standard_face(64))
    all_frames = fit_similarity(track.landmarks, standard_face(64))
    moved = transform_points(shown, track.landmarks[0]) - transform_points(all_frames, track.landmarks[0])
    assert np.abs(moved).max() > 0.05, "the two fits must differ, or nothing is tested"
    other = track_of(*([part[row] for row in rows] for part in moving))
    other.landmarks, other.boxes = np.stack(other.landmarks), np.stack(other.boxes)
    other.transforms, other.crops = track.transforms[rows], track.crops[rows]
    assert np.array_equal(clip, cut_clip(other, 0, 32))


def test_a_track_view_shares_memory_and_a_smaller_size_is_an_area_mean(moving):
    track = track_of(*moving)
    view = cut_clip(track, 3, 5, stride=2, alignment="track")
    assert np.shares_memory(view, track.crops) and np.array_equal(view, track.crops[3:12:2])
    small = cut_clip(track, 3, 5, stride=2, alignment="track", size=32)
    blocks = view.reshape(5, 32, 2, 32, 2, 3).astype(float).mean((2, 4))
    assert np.abs(small - blocks).max() <= 0.5


def test_a_track_without_crops_or_with_small_ones_is_refused(moving):
    track = track_of(*moving)
    with pytest.raises(InputError, match=r"stored at 64 pixels and cannot show 224.* crop_size=224"):
        cut_clip(track, 0, size=224)
    track.crops = None
    with pytest.raises(InputError, match="without crops"):
        cut_clip(track, 0)
    with pytest.raises(UsageError, match="by 'clip' or by 'track'"):
        cut_clip(track, 0, alignment="frame")


# --- sets -----------------------------------------------------------------------------------------------------------


def plain_track(n_frames, level, size=24, first=0):
    """A track of grey crops, each frame a little brighter than the one before."""
    levels = np.uint8(level + np.arange(n_frames) % 40)
    crops = np.broadcast_to(levels[:, None, None, None], (n_frames, size, size, 3)).copy()
    landmarks = np.float32(np.broadcast_to(standard_face(size), (n_frames, 5, 2)))
    boxes = np.float32(np.broadcast_to([0, 0, size, size], (n_frames, 4)))
    indices, ones = first + np.arange(n_frames), np.ones(n_frames, np.float32)
    transforms = track_transforms(landmarks, size)
    return FaceTrack(indices, indices / 25, boxes, landmarks, ones, ones > 0, transforms, crops)


def write_build(folder, contents):
    """A build whose media files have these (label, split, tracks)."""
    rows = []
    (folder / "tracks").mkdir(parents=True, exist_ok=True)
    for number, (label, split, tracks) in enumerate(contents):
        media_id = f"m{number}"
        digest = write_face_tracks(folder / "tracks" / f"{media_id}.safetensors", tracks, media_id)
        row = dict.fromkeys((*COLUMNS, *RESULT_COLUMNS), "")
        row |= {
            "media_id": media_id,
            "path": f"{media_id}.mp4",
            "label": label,
            "split": split,
            "method": "swap",
        }
        row |= {"tracks": f"tracks/{media_id}.safetensors", "tracks_sha256": digest, "n_tracks": len(tracks)}
        rows.append(
            row
            | {"n_frames": 0, "target_id": f"person {number}", "condition": ("dark", "bright")[number % 2]}
        )
    pd.DataFrame(rows).to_parquet(folder / "manifest.parquet")
    return folder


@pytest.fixture
def build(tmp_path):
    contents = [
        (0, "train", [plain_track(64, 10, first=5), plain_track(40, 200)]),
        (1, "train", [plain_track(20, 60)]),
        (1, "test", [plain_track(8, 90)]),
        (0, "test", []),
        (1, "val", [plain_track(33, 120)]),
    ]
    return write_build(tmp_path / "built", contents)


def test_a_set_has_one_row_per_clip_and_reports_what_it_left_out(build):
    clips = ClipSet(build)
    assert clips.table.media_id.tolist() == ["m0"] * 3 + ["m1"] + ["m4"] * 2
    assert clips.starts.tolist() == [0, 16, 32, 0, 0, 1]
    assert clips.table.unit.tolist() == [5, 21, 37, 0, 0, 1]
    assert clips.labels.tolist() == [0, 0, 0, 1, 1, 1] and clips.labels.dtype == torch.int64
    assert clips.media_ids == clips.table.media_id.tolist()
    assert {"split", "method", "target_id", "condition"} <= set(
        clips.table
    ) and "tracks_sha256" not in clips.table
    assert [media_id for media_id, _ in clips.left_out] == ["m2", "m3"]
    assert "8 frames is too short" in clips.left_out[0][1] and "no face track" in clips.left_out[1][1]


def test_a_set_reads_what_its_table_says(build):
    clips = ClipSet(build, length=16, step=16, alignment="track")
    batch = clips.read(np.array([5, 0, 3]))
    assert (batch.shape, batch.dtype) == ((3, 16, 24, 24, 3), torch.uint8)
    base = {"m0": 10, "m1": 60, "m4": 120}
    for clip, index in zip(batch, (5, 0, 3), strict=True):
        rows = clips.starts[index] + np.arange(16)
        assert clip[:, 0, 0, 0].tolist() == (base[clips.media_ids[index]] + rows % 40).tolist()


@pytest.mark.parametrize("most, starts", [(1, [16]), (2, [0, 32]), (3, [0, 16, 32]), (9, [0, 16, 32])])
def test_at_most_so_many_clips_a_file_are_spread_over_it(build, most, starts):
    assert ClipSet(build, most=most).table.groupby("media_id").start.apply(list)["m0"] == starts


def test_parts_of_a_build(build):
    whole = ClipSet(build)
    assert set(ClipSet(build, split="train").media_ids) == {"m0", "m1"}
    fakes = whole.faces.manifest[whole.faces.manifest.label == 1]
    chosen = ClipSet(whole.faces, manifest=fakes, split="val")
    assert set(chosen.media_ids) == {"m4"} and len(whole.faces) == 5
    empty = ClipSet(build, split="test")
    assert len(empty) == 0 and empty.read([]).shape[0] == 0 and list(empty.table)[:4] == list(whole.table)[:4]


def test_a_set_says_what_is_wrong_with_a_build(build, tmp_path):
    with pytest.raises(InputError, match="stored at 24 pixels and cannot show 64"):
        ClipSet(build, size=64)
    with pytest.raises(InputError, match="no finished build"):
        ClipSet(tmp_path / "nowhere")
    mixed = write_build(tmp_path / "mixed", [(0, "train", [plain_track(40, 1, size)]) for size in (24, 32)])
    with pytest.raises(InputError, match=r"several sizes, \[24, 32\]"):
        ClipSet(mixed)
    with pytest.raises(UsageError, match="give 1 or more"):
        ClipSet(build, most=0)


def test_a_store_of_another_alignment_is_refused(build):
    path = build / "tracks" / "m0.safetensors"
    content = path.read_bytes()
    assert content.count(b"altfreezing-window") == 1
    path.write_bytes(content.replace(b"altfreezing-window", b"altfreezing-finest"))
    with pytest.raises(InputError, match=r"alignment 'altfreezing-finest'.* Build it again"):
        ClipSet(build)


# --- the cache ------------------------------------------------------------------------------------------------------


def test_a_cache_holds_the_same_pixels_and_is_read_without_the_tracks(build, tmp_path):
    plain = ClipSet(build, size=16)
    cached = ClipSet(build, size=16, cache=tmp_path / "cut")
    assert cached.first_track.cache_info().currsize == 0, "no track stays open that is not needed any more"
    (file,) = (tmp_path / "cut").iterdir()
    written = file.stat().st_mtime_ns
    again = ClipSet(build, size=16, cache=tmp_path / "cut")
    assert file.stat().st_mtime_ns == written and again.kept == file
    for path in (build / "tracks").iterdir():
        path.write_bytes(b"")
    for clips in (cached, again):
        assert torch.equal(clips.read(range(len(clips))), torch.from_numpy(np.load(file)))
    plain.first_track.cache_clear()
    with pytest.raises(InputError):
        plain.read([0])


def test_a_cache_is_known_by_its_content(build, tmp_path):
    def names(**options):
        ClipSet(build, **{"size": 16, "cache": tmp_path / "cut"} | options)
        return {path.name for path in (tmp_path / "cut").iterdir()}

    count = len(names())
    for options in (
        {"size": 12},
        {"length": 8},
        {"stride": 2},
        {"alignment": "track"},
        {"step": 8},
        {"most": 1},
    ):
        grown = len(names(**options))
        assert grown == count + 1, options
        count = grown
    write_build(build, [(0, "train", [plain_track(64, 11)])])
    assert len(names()) == count + 1


def test_a_broken_off_cache_is_not_taken_for_a_whole_one(build, tmp_path, monkeypatch):
    calls = itertools.count()

    def cut_a_few(*arguments, **options):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return cut_clip(*arguments, **options)

    monkeypatch.setattr("deepfake_nb.learning.clips.cut_clip", cut_a_few)
    with pytest.raises(KeyboardInterrupt):
        ClipSet(build, cache=tmp_path / "cut")
    assert list((tmp_path / "cut").iterdir()) == []


# --- training and predicting ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_trainer_trains_on_a_set_and_resumes_where_it_was_stopped(build, tmp_path):
    clips = ClipSet(build, length=8, step=8, size=16)

    def trainer(epochs, folder):
        torch.manual_seed(0)
        settings = TrainingSettings(epochs=epochs, batch_size=4, learning_rate=1e-3)
        return Trainer(
            VideoResNet(width=1), settings, transform=IMAGENET_NORMALISATION, folder=tmp_path / folder
        )

    whole = trainer(2, "whole")
    log = whole.fit(clips, clips)
    trainer(1, "parts").fit(clips, clips)
    second = trainer(2, "parts")
    assert second.fit(ClipSet(build, length=8, step=8, size=16, cache=tmp_path / "cut"), clips).records[1][
        "train_loss"
    ] == pytest.approx(log.records[1]["train_loss"], abs=0)
    assert 0 <= log.records[0]["wait_s"] <= log.records[0]["seconds"]


class Levels(torch.nn.Module):
    """Logits that follow the mean level of a clip: one or two of them."""

    def __init__(self, outputs=1):
        super().__init__()
        self.outputs, self.drop = outputs, torch.nn.Dropout(0.9)
        self.norm = torch.nn.BatchNorm1d(1)

    def forward(self, clips):
        level = self.drop(clips.mean((1, 2, 3, 4)))
        return level if self.outputs == 1 else torch.stack([-level, level], 1)


@pytest.mark.parametrize("outputs", [1, 2])
def test_predictions_are_rows_of_the_table_in_its_order(build, outputs):
    clips, network = ClipSet(build), Levels(outputs)
    network.train()
    network.norm.eval()
    table = clip_predictions(network, clips, "levels", "nothing", "grey", batch_size=4)
    assert (network.training, network.drop.training, network.norm.training) == (True, True, False)
    expected = [float(normalise_clips(clips.read([at])).mean()) * outputs for at in range(len(clips))]
    assert table.logit.tolist() == pytest.approx(expected, abs=1e-5)
    assert table.score.tolist() == pytest.approx((1 / (1 + np.exp(-np.array(expected)))).tolist(), abs=1e-6)
    names = ["media_id", "unit", "label", "score", "logit", "detector", "train_set", "eval_set", "start"]
    assert list(table)[:9] == names and table.index.tolist() == list(range(len(clips)))
    assert {"condition", "method", "target_id"} <= set(table)
    pd.testing.assert_frame_equal(
        table, clip_predictions(network, clips, "levels", "nothing", "grey", batch_size=1)
    )


def test_predictions_can_be_evaluated_as_they_are(build, tmp_path):
    from deepfake_nb.evaluation.metrics import evaluate
    from deepfake_nb.evaluation.predictions import read_predictions

    clips = ClipSet(build, split="train")
    table = clip_predictions(Levels(), clips, "levels", "nothing", "grey")
    table.to_parquet(tmp_path / "predictions.parquet")
    read = read_predictions(tmp_path / "predictions.parquet")
    assert evaluate(read).values["auc"].value == 1.0


def test_no_clips_and_an_unknown_precision_are_refused(build):
    with pytest.raises(InputError, match="no clips in the set 'grey'; 2 files were left out"):
        clip_predictions(Levels(), ClipSet(build, split="test"), "levels", "nothing", "grey")
    with pytest.raises(UsageError, match="'float32', 'bf16' or 'auto', not 'float16'"):
        clip_predictions(Levels(), ClipSet(build), "levels", "nothing", "grey", precision="float16")


def test_bf16_is_requested_and_stays_near_float32(build):
    torch.manual_seed(0)
    network, clips = VideoResNet(width=2), ClipSet(build, length=8)
    for block in network.modules():
        if hasattr(block, "branch2"):
            torch.nn.init.ones_(block.branch2.c_bn.weight)
    exact, quick = (
        clip_predictions(network, clips, "r", "nothing", "grey", precision=precision).logit
        for precision in ("float32", "bf16")
    )
    assert not np.array_equal(exact, quick) and np.allclose(exact, quick, rtol=0.05, atol=0.02)
    assert inference_precision("float32", torch.device("cpu"))._enabled is False


# --- back to the frames ---------------------------------------------------------------------------------------------


def test_a_timeline_is_the_mean_of_the_clips_that_show_a_frame():
    rng = np.random.default_rng(0)
    for n_frames, length, step, stride in [(100, 32, 16, 1), (50, 8, 3, 2), (13, 32, 1, 1), (40, 8, 20, 1)]:
        starts = clip_starts(n_frames, length, step, stride)
        scores = rng.random(len(starts))
        table = frame_timeline(starts, length, scores, np.arange(n_frames) / 25, stride)
        for row in range(n_frames):
            showing = [row in clip_rows(n_frames, start, length, stride) for start in starts]
            assert table.clips[row] == sum(showing)
            expected = scores[showing].mean() if any(showing) else np.nan
            assert table.score[row] == pytest.approx(expected, nan_ok=True)


def test_a_clip_without_a_score_is_ignored():
    table = frame_timeline([0, 2], 4, [np.nan, 0.5], np.arange(6))
    assert table.clips.tolist() == [0, 0, 1, 1, 1, 1]
    assert table.score.isna().tolist() == [True, True, False, False, False, False]


def test_pooling_at_every_frame_is_the_mean_and_a_flush_clip_does_not_weigh_double():
    scores = np.random.default_rng(0).random(269)
    assert pool_clips(np.arange(269), scores) == pytest.approx(scores.mean())
    assert pool_clips([0, 16, 17], [0.0, 0.0, 1.0]) == pytest.approx(1 / 18)
    assert pool_clips([5], [0.25]) == 0.25
    with pytest.raises(InputError):
        pool_clips([], [])


def test_table_is_json_ready(build):
    records = ClipSet(build).table.to_dict("records")
    assert json.loads(json.dumps(records))[0]["unit"] == 5
    assert sha256_of(build / "tracks" / "m0.safetensors") == ClipSet(build).faces.manifest.tracks_sha256[0]

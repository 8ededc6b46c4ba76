"""The AltFreezing section: what its notebook cannot show - bad input, reproducible draws, small runs of its parts."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch

from deepfake_nb.learning.freezing import AlternateFreezing, GradualUnfreezing
from deepfake_nb.learning.training import TrainingSettings
from deepfake_nb.media.images import ArraySet
from deepfake_nb.media.video import write_video
from deepfake_nb.networks.video_resnet import VideoResNet, save_video_resnet
from deepfake_nb.networks.weights import shipped_file
from deepfake_nb.people.heads import random_identity
from deepfake_nb.people.rendering import render_video
from deepfake_nb.people.swapping import face_mask
from deepfake_nb.sections.altfreezing import (
    clips_after,
    count_needed_videos,
    frame_features,
    make_rule,
    split_scores,
    swap_with_self,
    video_features,
)
from deepfake_nb.sections.clip_training import (
    AugmentedClips,
    fine_tune,
    load_base,
    make_base_set,
    repeat_real_rows,
    train_base,
)
from deepfake_nb.study.files import InputError


@pytest.fixture(scope="module")
def film():
    """A rendered recording: frames and landmarks."""
    rendering = render_video(random_identity(3), "studio", 16, size=128, seed=3)
    return rendering.images, rendering.landmarks


@pytest.fixture(scope="module")
def recording(film, tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("film") / "person.mp4", film[0], 25)


@pytest.fixture(scope="module")
def little_base(tmp_path_factory):
    return make_base_set(2, 12, side=128, seed=1, root=tmp_path_factory.mktemp("sets"))


def noise_clips(n, seed=0):
    rng = np.random.default_rng(seed)
    return ArraySet(rng.integers(0, 256, (n, 4, 32, 32, 3), dtype=np.uint8), np.arange(n) % 2)


def test_a_rule_is_named_or_refused():
    assert isinstance(make_rule("alternate freezing"), AlternateFreezing)
    assert make_rule("alternate freezing", "published").groups == "name"
    assert make_rule("gradual unfreezing", "published") == GradualUnfreezing(published=True)
    with pytest.raises(InputError, match="no rule 'freezing'"):
        make_rule("freezing")


def test_base_set_has_two_fakes_of_everybody_and_nobody_on_both_sides(little_base):
    manifest = little_base.manifest
    assert manifest.groupby(["split", "method"]).size().unstack().to_numpy().tolist() == [
        [2, 2, 2],
        [2, 2, 2],
    ]
    people = {
        split: set(rows.source_id) | set(rows.target_id.dropna()) for split, rows in manifest.groupby("split")
    }
    assert not people["train"] & people["val"] and little_base.leaking == 0


def test_real_rows_are_repeated_until_they_balance_the_fakes():
    manifest = pd.DataFrame({"label": [0, 1, 1, 0, 1, 1], "path": list("abcdef")})
    assert repeat_real_rows(manifest).label.tolist() == [0] * 4 + [1] * 4
    assert repeat_real_rows(manifest[manifest.label == 1]).label.tolist() == [1] * 4


def test_base_model_trains_on_the_base_set_and_goes_on_after_a_stop(little_base, tmp_path):
    options = {"width": 2, "length": 8, "size": 32, "step": 4}
    settings = TrainingSettings(epochs=2, batch_size=4, learning_rate=1e-3)
    whole = train_base(little_base.folder, settings, **options)
    part = train_base(
        little_base.folder,
        TrainingSettings(epochs=1, batch_size=4, learning_rate=1e-3),
        folder=tmp_path,
        **options,
    )
    assert part.log.records[0]["val_auc"] == whole.log.records[0]["val_auc"]
    assert [record["train_loss"] for record in part.log.records] == [whole.log.records[0]["train_loss"]]


def test_fine_tuning_leaves_the_base_model_as_it_was():
    base = VideoResNet(2)
    before = copy.deepcopy(base.state_dict())
    settings = TrainingSettings(epochs=1, batch_size=2, learning_rate=1e-2)
    tuned = fine_tune(
        base,
        "alternate freezing",
        "noise",
        (noise_clips(4), noise_clips(4, 1)),
        settings,
        [make_rule("alternate freezing")],
    )
    assert all(torch.equal(before[name], tensor) for name, tensor in base.state_dict().items())
    after = tuned.trainer.network.state_dict()
    assert any(not torch.equal(before[name], tensor) for name, tensor in after.items())


def test_validation_with_one_label_gets_no_auc_and_no_complaint():
    one_sided = ArraySet(np.zeros((2, 4, 32, 32, 3), np.uint8), [0, 0])
    settings = TrainingSettings(epochs=1, batch_size=2, learning_rate=1e-3)
    tuned = fine_tune(
        VideoResNet(2),
        "gradual unfreezing",
        "noise",
        (noise_clips(4), one_sided),
        settings,
        [make_rule("gradual unfreezing")],
    )
    assert "val_auc" not in tuned.log.records[0] and "val_loss" in tuned.log.records[0]


def test_shipped_base_model_loads_and_says_what_it_knows():
    base = load_base()
    assert "rendered people" in base.trained_on and base.network.width == 16
    assert shipped_file("altfreezing-base.safetensors").stat().st_size < 8e6
    with torch.inference_mode():
        assert base.network(torch.zeros(1, 3, 16, 96, 96)).shape == (1,)


def test_base_model_of_another_kind_or_damaged_is_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_video_resnet(path, VideoResNet(2), "noise")
    assert load_base(path).trained_on == "noise"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError):
        load_base(path)
    with pytest.raises(InputError, match="absent"):
        load_base(tmp_path / "absent.safetensors")


def test_augmentation_depends_on_clip_and_epoch_not_on_the_batch():
    shifted = AugmentedClips(noise_clips(4), lambda clip, rng: clip + np.uint8(rng.integers(1, 200)), seed=5)
    shifted.on_epoch_start(None, 1)
    together, alone = shifted.read([0, 1, 2]), shifted.read([2])
    assert torch.equal(together[2:], alone)
    shifted.on_epoch_start(None, 2)
    assert not torch.equal(shifted.read([2]), alone)
    assert torch.equal(noise_clips(4).read([2]), noise_clips(4).read([2])), "the clips beneath stay"


def test_features_of_a_flat_frame_have_no_edges():
    features = frame_features(np.full((40, 60, 3), 128, np.uint8))
    assert features[:32].tolist() == [float(level == 16) for level in range(32)] and not features[32:].any()
    assert video_features(np.zeros((3, 32, 32, 3), np.uint8)).shape == (576,)


def test_twins_across_the_split_invert_the_baseline():
    rng = np.random.default_rng(1)
    people = rng.normal(size=(12, 20)).repeat(2, axis=0) + 0.01 * rng.normal(size=(24, 20))
    labels = np.tile([0, 1], 12)
    assert split_scores(people, labels, rounds=30).mean() < 0.3
    assert split_scores(people, labels, np.arange(12).repeat(2), rounds=30).mean() > 0.35


def test_splits_with_one_label_give_no_area():
    assert len(split_scores(np.zeros((4, 2)), [0, 0, 0, 1], rounds=20)) < 20


def test_videos_needed_grow_with_the_square_of_the_error():
    few, many = count_needed_videos(0.1, 0.05, 50), count_needed_videos(0.1, 0.1, 50)
    assert 4 * few - 4 <= many <= 4 * few and count_needed_videos(-0.1, 0.05, 50) == few
    assert count_needed_videos(0, 0.1, 10) is None


def test_clips_after_a_change_are_found_again(recording):
    clips = clips_after(recording, length=8, size=48)
    assert clips.shape == (3, 8, 48, 48, 3) and clips.dtype == np.uint8
    darker = clips_after(recording, lambda images: images // 2, length=8, size=48)
    assert darker.mean() == pytest.approx(clips.mean() / 2, rel=0.1)


def test_clips_of_the_beginning_of_a_video(recording):
    assert len(clips_after(recording, length=8, size=48, frames=12)) == 2
    assert len(clips_after(recording, length=16, size=48, frames=12)) == 1, "a short track is mirrored"
    assert len(clips_after(recording, length=16, size=48, frames=10)) == 0, "ten frames say nothing"


def test_clips_of_a_video_whose_face_is_gone_are_none(recording):
    clips = clips_after(recording, lambda images: np.full_like(images, 90), length=8, size=48)
    assert clips.shape == (0, 8, 48, 48, 3)


def test_a_low_bitrate_shows_in_the_clips(recording):
    fine, coarse = (clips_after(recording, length=8, size=48, bitrate=rate) for rate in (None, 20_000))

    def detail(clips):
        return np.abs(np.diff(clips.astype(float), axis=3)).mean()

    assert len(coarse) == 0 or detail(coarse) < 0.95 * detail(fine)


def test_self_swap_changes_the_face_and_nothing_else(film):
    images, landmarks = film
    swapped = swap_with_self(images, landmarks, np.random.default_rng(0))
    changed = np.abs(swapped.astype(int) - images).sum(-1) > 0
    wide = np.stack([face_mask(points, images.shape[1], scale=2.0) > 0 for points in landmarks])
    assert changed.any(axis=(1, 2)).sum() >= len(images) - 1
    assert not (changed & ~wide).any()


def test_self_swap_without_a_face_says_so(film):
    images, landmarks = film
    with pytest.raises(InputError, match="No frame of this video has a face"):
        swap_with_self(images, np.full_like(landmarks, np.nan), np.random.default_rng(0))

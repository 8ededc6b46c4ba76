"""Rendered people: what the notebook does not show (determinism, odd sizes, smooth motion, refused arguments)."""

import numpy as np
import pytest
import torch

from deepfake_nb.people.heads import random_identity
from deepfake_nb.people.rendering import render_stills, render_video
from deepfake_nb.people.scenes import DOMAINS, MOTION
from deepfake_nb.study.files import InputError


@pytest.fixture(scope="module")
def people():
    return [random_identity(seed) for seed in (3, 4, 5)]


@pytest.fixture(scope="module")
def clip(people):
    return render_video(people[0], "conference", 40, size=96, seed=2)


def same(a, b):
    return all(
        np.array_equal(getattr(a, k), getattr(b, k)) for k in ("images", "landmarks", "face_masks", "boxes")
    )


@pytest.mark.parametrize("domain", DOMAINS)
def test_shapes_and_types(people, domain):
    rendering = render_video(people[1], domain, 3, size=(96, 128), seed=1)
    assert rendering.images.shape == (3, 96, 128, 3) and rendering.images.dtype == np.uint8
    assert rendering.landmarks.shape == (3, 5, 2) and rendering.landmarks.dtype == np.float32
    assert rendering.face_masks.shape == (3, 96, 128) and rendering.face_masks.dtype == bool
    assert rendering.boxes.shape == (3, 4) and rendering.boxes.dtype == np.float32
    assert len(rendering) == len(rendering.parameters) == 3
    assert set(MOTION) <= set(rendering.parameters.columns)
    assert rendering.images.std() > 20


@pytest.mark.parametrize("size", [(96, 64), (65, 97), (33, 32)])
def test_odd_sizes(people, size):
    rendering = render_video(people[0], "wild", 2, size=size)
    assert rendering.images.shape == (2, *size, 3)
    assert rendering.face_masks.any((1, 2)).all()


def test_same_arguments_same_pixels(people, clip):
    assert same(clip, render_video(random_identity(3), "conference", 40, size=96, seed=2))
    other = render_video(people[0], "conference", 2, size=96, seed=3)
    assert np.abs(other.images[0].astype(int) - clip.images[0]).mean() > 3


def test_pixels_do_not_depend_on_the_callers_randomness(people):
    first = render_stills(people[:1], "wild", size=96)
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    assert same(first, render_stills(people[:1], "wild", size=96))


def test_batch_equals_single_renders(people):
    batch = render_stills(people, "celebrity", size=96, seed=6)
    for k, person in enumerate(people):
        assert np.array_equal(
            batch.images[k], render_stills([person], "celebrity", size=96, seed=6).images[0]
        )
    assert batch.parameters.identity.tolist() == [p.seed for p in people]


def test_a_person_given_twice_gets_two_pictures(people):
    pair = render_stills([people[0], people[1], people[0]], "studio", size=96)
    assert not np.array_equal(pair.images[0], pair.images[2])
    assert pair.parameters.yaw[0] != pair.parameters.yaw[2]


def test_faces_are_in_the_picture(people):
    for domain in DOMAINS:
        rendering = render_stills(people, domain, size=96, seed=8)
        assert (rendering.landmarks >= 0).all() and (rendering.landmarks < 96).all()
        x0, y0, x1, y1 = rendering.boxes.T
        x, y = rendering.landmarks[..., 0], rendering.landmarks[..., 1]
        assert (x >= x0[:, None]).all() and (x <= x1[:, None]).all()
        assert (y >= y0[:, None]).all() and (y <= y1[:, None]).all()
        left, right, nose, mouth_left, mouth_right = rendering.landmarks.swapaxes(0, 1)
        assert (left[:, 0] < right[:, 0]).all() and (mouth_left[:, 0] < mouth_right[:, 0]).all()
        assert (nose[:, 1] < mouth_left[:, 1]).all() and (nose[:, 1] > left[:, 1]).all()


def test_masks_cover_the_face_and_nothing_else(clip):
    ys, xs = np.nonzero(clip.face_masks[0])
    x0, y0, x1, y1 = clip.boxes[0]
    inside = (xs > x0 - 12) & (xs < x1 + 12) & (ys > y0 - 12) & (ys < y1 + 12)
    assert inside.mean() > 0.99
    area = clip.face_masks.sum((1, 2)) / ((x1 - x0) * (y1 - y0))
    assert (area > 0.4).all() and (area < 1.3).all()
    nose = np.round(clip.landmarks[:, 2]).astype(int)
    assert clip.face_masks[np.arange(40), nose[:, 1], nose[:, 0]].all()


def test_motion_is_smooth(clip):
    eyes = np.linalg.norm(clip.landmarks[:, 1] - clip.landmarks[:, 0], axis=1).mean()
    assert 0 < np.abs(np.diff(clip.landmarks, axis=0)).max() < 0.15 * eyes
    assert clip.parameters[["yaw", "pitch", "roll"]].diff().abs().max().max() < 2.5
    change = np.abs(np.diff(clip.images.astype(int), axis=0)).mean((1, 2, 3))
    assert change.max() < 12


def test_frame_rate_changes_speed_not_motion(people):
    slow = render_video(people[0], "studio", 9, size=64, frame_rate=10, seed=4)
    fast = render_video(people[0], "studio", 17, size=64, frame_rate=20, seed=4)
    shared = ["yaw", "pitch", "mouth_open", "shift_x"]
    assert np.allclose(slow.parameters[shared], fast.parameters[shared][::2], atol=1e-6)
    assert slow.parameters.time_s.tolist() == pytest.approx([k / 10 for k in range(9)])


def test_identities_differ_more_than_frames(people, clip):
    def shape(rendering):
        points = rendering.landmarks - rendering.landmarks.mean(1, keepdims=True)
        return np.linalg.norm(points, axis=2) / np.linalg.norm(points, axis=(1, 2))[:, None]

    def look(rendering):
        return np.stack([i[m].mean(0) for i, m in zip(rendering.images, rendering.face_masks, strict=True)])

    clips = [clip] + [render_video(p, "conference", 40, size=96, seed=2) for p in people[1:]]
    for measure in (shape, look):
        values = np.stack([measure(c) for c in clips])
        within = values.std(1).mean()
        between = values.mean(1).std(0).mean()
        assert between > 1.2 * within


def test_traits_are_varied():
    traits = [random_identity(seed).trait for seed in range(120)]
    assert len({t["hair_style"] for t in traits}) >= 9
    assert min(t["melanin"] for t in traits) < 0.1 and max(t["melanin"] for t in traits) > 0.9
    assert min(t["age"] for t in traits) < 25 and max(t["age"] for t in traits) > 65
    assert 0.35 < np.mean([t["build"] > 0.5 for t in traits]) < 0.65


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p: render_video(p, "cinema", 2), "no domain 'cinema'"),
        (lambda p: render_stills([p], "Studio"), "choose one of studio"),
        (lambda p: render_video(p, "wild", 0), "n_frames"),
        (lambda p: render_video(p, "wild", 2.5), "n_frames"),
        (lambda p: render_video(p, "wild", 2, frame_rate=0), "frame_rate"),
        (lambda p: render_video(p, "wild", 2, seed=-1), "seed"),
        (lambda p: render_video(p, "wild", 2, size=8), "32 to 4096"),
        (lambda p: render_video(p, "wild", 2, size="big"), "size"),
        (lambda p: render_video("Ada", "wild", 2), "random_identity"),
        (lambda p: render_stills([], "wild"), "at least one"),
        (lambda p: random_identity(1.5), "whole number"),
        (lambda p: random_identity(-3), "whole number"),
    ],
)
def test_bad_arguments_are_refused_with_a_sentence(people, call, words):
    with pytest.raises(InputError, match=words):
        call(people[0])

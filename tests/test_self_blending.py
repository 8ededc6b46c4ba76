"""Self-blended images: masks and blends in range, the same for a seed, and equal outside of the mask."""

import numpy as np
import pytest

from deepfake_nb.people import self_blending
from deepfake_nb.people.self_blending import (
    REGIONS,
    BlendSettings,
    Donor,
    apply_handling,
    choose_handling,
    fit_donor,
    match_colours,
    random_mask,
    random_view,
    self_blend,
)

SIDE = 128
LANDMARKS = np.float32([[45, 50], [83, 50], [64, 72], [48, 92], [80, 92]])
NOTHING = BlendSettings(colours=False, texture=False, movement=False)
CHANGES = {change for seed in range(600) for change, _ in choose_handling(np.random.default_rng(seed))}


def generator(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def face():
    """Smooth patches with a little noise: something that every change changes."""
    y, x = np.mgrid[:SIDE, :SIDE]
    waves = np.stack([127 + 80 * np.sin(x / a) * np.cos(y / b) for a, b in ((9, 7), (13, 5), (6, 11))], -1)
    return np.clip(waves + generator().normal(0, 6, waves.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("region", dict.fromkeys(REGIONS))
def test_a_mask_lies_within_its_ratio_and_covers_a_part(region):
    for seed in range(12):
        mask = random_mask(LANDMARKS, SIDE, generator(seed), region, ratio=0.5)
        assert mask.shape == (SIDE, SIDE) and mask.dtype == np.float32
        assert mask.min() >= 0 and mask.max() == pytest.approx(0.5, abs=1e-6)
        assert 0.002 < (mask > 0.25).mean() < 0.9, (region, seed)


def test_a_mask_moves_with_the_face():
    mask, moved = (
        random_mask(points, SIDE, generator(3), "face", 1.0)
        for points in (LANDMARKS, LANDMARKS + np.float32([12, -9]))
    )
    centres = [np.argwhere(part > 0.5).mean(0) for part in (mask, moved)]
    assert np.abs(centres[1] - centres[0] - [-9, 12]).max() < 2.5


def test_ratios_are_those_of_the_settings():
    found = {round(float(random_mask(LANDMARKS, SIDE, generator(seed)).max()), 2) for seed in range(60)}
    assert found == {0.5, 0.75, 1.0}
    assert {
        round(float(random_mask(LANDMARKS, SIDE, generator(s), ratio=0.3).max()), 2) for s in range(9)
    } == {0.3}


@pytest.mark.parametrize("seed", range(12))
def test_a_blend_differs_from_its_genuine_twin_inside_the_mask_only(face, seed):
    blend = self_blend(face, LANDMARKS, generator(seed))
    assert blend.forged.dtype == blend.genuine.dtype == np.uint8
    assert (blend.forged[blend.mask == 0] == blend.genuine[blend.mask == 0]).all()
    assert (blend.forged != blend.genuine).any() and (blend.mask == 0).any()


def test_a_blend_depends_on_its_seed_alone_and_leaves_its_input_as_it_is(face):
    before = face.copy()
    first, again, other = (self_blend(face, LANDMARKS, generator(seed)) for seed in (5, 5, 6))
    assert all((one == two).all() for one, two in zip(first, again, strict=True))
    assert (first.forged != other.forged).any() and (face == before).all()


def test_without_any_change_the_blend_is_the_face(face):
    for seed in range(6):
        blend = self_blend(face, LANDMARKS, generator(seed), settings=NOTHING)
        assert np.abs(blend.forged.astype(int) - face).max() <= 1 and (blend.genuine == face).all()


@pytest.mark.parametrize("name", ["colours", "texture", "movement"])
def test_a_step_can_be_left_out(face, name, monkeypatch):
    """What is left out is never called."""
    function = {"colours": "shift_colours", "texture": "change_texture", "movement": "nudge"}[name]

    def refuse(*arguments):
        raise AssertionError(f"{function} was called")

    monkeypatch.setattr(self_blending, function, refuse)
    settings = BlendSettings(**{name: False})
    for seed in range(10):
        self_blend(face, LANDMARKS, generator(seed), settings=settings)
    with pytest.raises(AssertionError, match=function):
        for seed in range(10):
            self_blend(face, LANDMARKS, generator(seed))


def test_settings_choose_regions_and_ratios(face, monkeypatch):
    asked = []
    monkeypatch.setattr(
        self_blending, "random_mask", lambda *a: asked.append(a[3:]) or np.zeros((SIDE, SIDE), np.float32)
    )
    settings = BlendSettings(regions=("ellipse", "half"), ratios=(0.4,))
    for seed in range(20):
        self_blend(face, LANDMARKS, generator(seed), settings=settings)
    assert set(asked) == {("ellipse", 0.4), ("half", 0.4)}


def test_a_donor_is_laid_over_the_landmarks_and_matched_in_colour(face):
    shifted = np.roll(face, 20, axis=1)
    fitted = fit_donor(Donor(shifted, LANDMARKS + np.float32([20, 0])), LANDMARKS, face.shape)
    assert np.abs(fitted[20:-20, 20:-30].astype(int) - face[20:-20, 20:-30]).mean() < 2
    mask = random_mask(LANDMARKS, SIDE, generator(), "face", 1.0)
    darker = (face * 0.5).astype(np.uint8)
    matched = match_colours(darker, face, mask, 1.0)
    inside = mask > 0.5
    assert (
        abs(matched[inside].mean() - face[inside].mean())
        < 8
        < abs(darker[inside].mean() - face[inside].mean())
    )
    blend = self_blend(face, LANDMARKS, generator(2), Donor(shifted, LANDMARKS + np.float32([20, 0])))
    assert (blend.forged[blend.mask == 0] == blend.genuine[blend.mask == 0]).all()


def test_all_changes_of_a_picture_keep_its_shape_and_are_the_same_for_a_seed(face):
    assert {change.__name__ for change in CHANGES} >= {
        "compress",
        "soften",
        "add_noise",
        "as_poor_video_frame",
        "smooth_skin",
    }
    for change in CHANGES:
        once, again = (change(face, generator(4)) for _ in range(2))
        assert once.shape == face.shape and once.dtype == np.uint8 and (once == again).all(), change.__name__


def test_both_faces_of_a_pair_are_changed_alike(face):
    for seed in range(8):
        view, changes = random_view(generator(seed), SIDE, 96), choose_handling(generator(seed))
        one, other = (apply_handling(face.copy(), view, changes, 96) for _ in range(2))
        assert one.shape == (96, 96, 3) and (one == other).all() and one.flags["C_CONTIGUOUS"]


def test_a_view_keeps_the_middle_in_sight():
    """Ten degrees, a twelfth of scale and a shift of 4 % move the centre of a crop by no more than that shift."""
    for seed in range(30):
        matrix = random_view(generator(seed), SIDE, 96)
        centre = matrix @ [(SIDE - 1) / 2, (SIDE - 1) / 2, 1]
        assert np.abs(centre - 47.5).max() < 0.04 * 96 + 1


def test_settings_without_regions_or_ratios_are_an_error(face):
    for wrong in ({"regions": ()}, {"ratios": ()}):
        with pytest.raises((ValueError, IndexError)):
            self_blend(face, LANDMARKS, generator(), settings=BlendSettings(**wrong))

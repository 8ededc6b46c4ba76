"""Pictures as batches: files of every state, caches, normalisation and augmentation by other means."""

import cv2
import numpy as np
import pytest
import torch

from deepfake_nb.media.images import (
    CIFAR_NORMALISATION,
    HALF_NORMALISATION,
    ArraySet,
    Augmentation,
    ImageSet,
    Normalise,
)
from deepfake_nb.media.video import read_image
from deepfake_nb.study.files import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

CROP_AND_MIRROR = Augmentation(HALF_NORMALISATION, padding=2, flip=True)


def noise(n, size=12):
    """Pictures of noise, uint8 tensor (n, size, size, 3)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, size, size, 3), dtype=torch.uint8, generator=generator)


# --- normalising and augmenting -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 7, 9), (2, 4, 5, 6)])
def test_normalising_is_a_product_and_a_difference_in_float32_to_the_last_bit(shape):
    generator = torch.Generator().manual_seed(1)
    pictures = torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=generator)
    mean, std = np.array(CIFAR_NORMALISATION.mean), np.array(CIFAR_NORMALISATION.std)
    by_hand = pictures.numpy().astype(np.float32) * np.float32(1 / (255 * std)) - np.float32(mean / std)
    assert np.array_equal(CIFAR_NORMALISATION(pictures).movedim(1, -1).numpy(), by_hand)
    assert np.array_equal(CIFAR_NORMALISATION(pictures.float()).movedim(1, -1).numpy(), by_hand)
    assert CIFAR_NORMALISATION(pictures[:0]).shape == (0, 3, *shape[1:])


def test_normalising_leaves_what_it_is_given():
    given = noise(2).float()
    before = given.clone()
    CIFAR_NORMALISATION(given)
    assert torch.equal(given, before)


def test_frames_of_a_clip_are_changed_alike():
    still = noise(5)
    clips = still[:, None].expand(-1, 3, -1, -1, -1)
    draws = torch.rand(5, 9, generator=torch.Generator().manual_seed(0))
    for change in (CROP_AND_MIRROR, Augmentation(HALF_NORMALISATION, 2, True, 15, 0.2, 0.2, 0.1)):
        for frame in change(clips, draws).unbind(2):
            torch.testing.assert_close(frame, change(still, draws))


def test_crop_and_mirror_are_those_of_torchvision():
    """Where torchvision crops a padded image at (i, j), ours shifts it by (padding - i, padding - j)."""
    from torchvision.transforms import functional

    picture = noise(1)
    planes = picture[0].movedim(-1, 0)
    for across, down, mirrored in [(0, 4, True), (3, 1, False), (4, 2, True)]:
        padded = functional.pad(planes, 2)
        expected = functional.crop(functional.hflip(padded) if mirrored else padded, down, across, 12, 12)
        draws = torch.full((1, 9), 0.5)
        draws[0, :3] = torch.tensor([(4 - across + 0.5) / 5, (4 - down + 0.5) / 5, 0.2 if mirrored else 0.8])
        ours = CROP_AND_MIRROR(picture, draws)[0]
        torch.testing.assert_close(ours, HALF_NORMALISATION(expected.movedim(0, -1)[None])[0])


@pytest.mark.parametrize("normalise", [CIFAR_NORMALISATION, HALF_NORMALISATION])
def test_normalise_is_torchvisions(normalise):
    from torchvision.transforms import functional

    still = noise(2)
    expected = functional.normalize(still.movedim(-1, 1) / 255, normalise.mean, normalise.std)
    torch.testing.assert_close(normalise(still), expected, rtol=0, atol=1e-6)


def test_rotation_turns_by_the_angle_it_says():
    picture = torch.zeros(1, 41, 61, 3, dtype=torch.uint8)
    picture[:, 20, 45] = 255  # 15 pixels right of the middle
    draws = torch.full((1, 9), 0.5)
    draws[0, 3] = 1.0
    turned = Augmentation(Normalise((0, 0, 0), (1, 1, 1)), rotation=90)(picture, draws)[0, 0]
    row, column = divmod(int(turned.argmax()), 61)
    assert (abs(row - 20), column) == (15, 30)


# --- images from files --------------------------------------------------------------------------------------------


@pytest.fixture
def stills(tmp_path):
    rng = np.random.default_rng(0)
    paths = []
    for at in range(7):
        picture = cv2.GaussianBlur(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8), (0, 0), 2)
        paths.append(tmp_path / f"face {at}.{'jpg' if at % 2 else 'png'}")
        cv2.imwrite(str(paths[-1]), picture)
    return paths


def test_pictures_are_those_of_read_image(stills):
    read = ImageSet(stills, [0] * 7, size=40).read(range(7)).numpy()
    for picture, path in zip(read, stills, strict=True):
        assert (
            np.abs(picture.astype(int) - read_image(path)).max() <= 2
        )  # two JPEG decoders may round differently


@pytest.mark.parametrize("cache", [None, "memory", "folder"])
def test_caches_give_the_same_pictures(stills, tmp_path, cache):
    cache = tmp_path / "cache" if cache == "folder" else cache
    data = ImageSet(stills, [0] * 7, size=40, cache=cache)
    fresh = ImageSet(stills, [0] * 7, size=40, cache=None, threads=1)
    for order in ([6, 1, 1, 0], range(7), [3]):
        assert torch.equal(data.read(order), fresh.read(order))


def test_folder_cache_is_used_again_and_made_anew_for_changed_files(stills, tmp_path):
    ImageSet(stills, [0] * 7, size=40, cache=tmp_path / "cache")
    file = next((tmp_path / "cache").glob("*.npy"))
    before = file.stat().st_mtime_ns
    ImageSet(stills, [1] * 7, size=40, cache=tmp_path / "cache")
    assert file.stat().st_mtime_ns == before
    cv2.imwrite(str(stills[2]), np.zeros((40, 40, 3), np.uint8))
    changed = ImageSet(stills, [0] * 7, size=40, cache=tmp_path / "cache")
    assert changed.read([2]).max() == 0 and len(list((tmp_path / "cache").glob("*.npy"))) == 2


def test_memory_budget(stills):
    assert ImageSet(stills, [0] * 7, size=40, memory_budget=7 * 40 * 40 * 3).kept is not None
    assert ImageSet(stills, [0] * 7, size=40, memory_budget=7 * 40 * 40 * 3 - 1).kept is None


def test_other_sizes_are_scaled_and_cut_in_the_middle(tmp_path):
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 200
    cv2.imwrite(str(tmp_path / "wide.png"), wide)
    read = ImageSet([tmp_path / "wide.png"], [0], size=30).read([0])
    assert read.shape == (1, 30, 30, 3) and read[0, :, 2:-2].min() == 200


@pytest.mark.parametrize("content", [None, b"", b"no picture", "cut"])
@pytest.mark.parametrize("which", [0, 1])
def test_unreadable_picture(stills, content, which):
    path = stills[which]
    whole = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(whole[: len(whole) // 2] if content == "cut" else content)
    with pytest.raises(InputError, match=path.name):
        ImageSet(stills, [0] * 7, size=40).read(range(7))
    left = ImageSet(stills, np.arange(7) % 2, size=40, leave_out_unreadable=True)
    assert [(p, path.name in why) for p, why in left.left_out] == [(path, True)]
    assert (len(left), left.read(range(6)).shape) == (6, (6, 40, 40, 3))
    assert left.labels.tolist() == np.delete(np.arange(7) % 2, which).tolist()


@pytest.mark.parametrize("side", [20_000, 65_535])
def test_a_header_that_claims_a_huge_picture_is_refused_in_words(stills, side):
    content = bytearray(stills[1].read_bytes())
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = side.to_bytes(2, "big") * 2
    stills[1].write_bytes(content)
    with pytest.raises(InputError, match="face 1"):
        ImageSet(stills, [0] * 7, size=40).read([1])


@pytest.mark.parametrize(
    ("labels", "ids", "said"),
    [([0, 1], None, "one label for each"), ([0, 1, 2], None, "Label 2 is"), ([0, 1, np.nan], None, "Label 2 is"),
     ([0, 1, 1], ["a"], "1 media ids")],
)  # fmt: skip
def test_labels_and_ids_that_do_not_fit(labels, ids, said):
    stills = np.zeros((3, 4, 4, 3), np.uint8)
    with pytest.raises(InputError, match=said):
        ArraySet(stills, labels, ids)
    with pytest.raises(InputError, match=said):
        ImageSet(["a.jpg", "b.jpg", "c.jpg"], labels, media_ids=ids)


def test_arrays_that_are_no_pictures():
    for shape, kind in [((3, 4, 4, 3), np.float32), ((3, 4, 4), np.uint8), ((3, 3, 4, 4), np.uint8)]:
        with pytest.raises(InputError, match="cannot be used"):
            ArraySet(np.zeros(shape, kind), [0, 1, 0])

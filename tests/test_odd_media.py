"""Odd but valid media: what is on the screen is read, or a sentence says what was left out."""

from dataclasses import replace
from types import SimpleNamespace

import av
import numpy as np
import pytest
from av.stream import Disposition
from layouts import WhiteSquares
from PIL import Image
from scoring import Brightness, detector_of, patches

from deepfake_nb.media.faces import Detections
from deepfake_nb.media.video import HIGH_RANGE, _light_of_codes, media_kind, read_frames
from deepfake_nb.scoring import views
from deepfake_nb.scoring.score import MediaScorer
from deepfake_nb.scoring.verdict import explain_missing_score
from deepfake_nb.scoring.views import (
    Detector,
    Sampling,
    choose_frames,
    cut_as_mesonet,
    extract_video_views,
    extract_views,
    find_media,
)


def moving(n, size=(64, 48)):
    """Grey frames whose brightness is their number."""
    for number in range(n):
        yield np.full((size[1], size[0], 3), 10 + 4 * number, np.uint8)


def write(path, images, codec="mpeg4", pts=None, rate=10, container_format=None):
    """Encode frames with given times, in units of a frame."""
    with av.open(str(path), "w", format=container_format) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.gop_size = 5
        stream.codec_context.max_b_frames = 0
        for number, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            frame.pts = number if pts is None else pts[number]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


# Lengths and clocks


def test_a_clock_that_starts_late_is_no_damage(tmp_path):
    late = write(tmp_path / "late.mkv", moving(20), pts=[73 + n for n in range(20)])
    stream = read_frames(late)
    times = [frame.time_s for frame in stream]
    assert times[0] == 0 and times[-1] == pytest.approx(1.9) and stream.damage == ""


def test_empty_packets_are_no_damage(tmp_path):
    gaps = write(tmp_path / "gaps.avi", moving(20), pts=[n if n < 10 else n + 15 for n in range(20)])
    stream = read_frames(gaps)
    assert len(list(stream)) == 20 and stream.damage == ""


def test_a_segment_glued_on_continues_the_clock(tmp_path):
    one, two = (write(tmp_path / f"{name}.ts", moving(20), "mpeg2video", rate=25) for name in "ab")
    (tmp_path / "both.ts").write_bytes(one.read_bytes() + two.read_bytes())
    times = [frame.time_s for frame in read_frames(tmp_path / "both.ts")]
    assert len(times) >= 39 and (np.diff(times) > 0).all() and times[-1] == pytest.approx(39 / 25, abs=0.1)


def test_a_length_that_is_not_the_pictures_own_is_found_out(tmp_path, monkeypatch):
    short = write(tmp_path / "short.mp4", moving(30))
    looked = []
    monkeypatch.setattr(
        views, "track_faces", lambda frames, *_, **__: looked.append([f.index for f in frames]) or []
    )
    monkeypatch.setattr(
        views, "probe", lambda path: SimpleNamespace(frame_rate=10, frame_count=None, duration_s=900.0)
    )
    found = extract_video_views(short, [], None, Sampling(), None)
    assert len(looked[0]) < 3 and len(looked[-1]) >= 15 and found.stream.count == len(looked[-1])


def test_strides_count_from_the_first_frame_that_was_read():
    track = SimpleNamespace(
        frame_indices=np.array([13, 18, 23]),
        boxes=np.tile([0.0, 0, 90, 90], (3, 1)),
        landmarks=np.zeros((3, 5, 2)),
    )
    detector = SimpleNamespace(smallest_face=40, most_faces=None)
    assert not choose_frames([track], [detector], 5, None)
    assert sorted(choose_frames([track], [detector], 5, None, first=13)) == [13, 18, 23]


# Colours


@pytest.mark.parametrize("transfer", HIGH_RANGE)
def test_high_dynamic_range_looks_like_standard_range(tmp_path, transfer):
    wanted = np.array([[40, 90, 200], [128, 128, 128], [200, 120, 90], [230, 230, 230]], float)
    light = (wanted / 255) ** 2.4 @ np.linalg.inv(
        np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]]).T
    )
    if HIGH_RANGE[transfer] == "HLG":  # the scene that a screen of 1000 cd/m2 shows so
        shown = 203 * light / 1000
        luminance = shown @ [0.2627, 0.678, 0.0593]
        scene = shown / (luminance ** (0.2 / 1.2))[:, None]
    else:
        scene = 203 * light
    codes = np.interp(scene, _light_of_codes(transfer), np.arange(4096)) * 65535 / 4095
    image = np.repeat(np.repeat(codes.round().astype(np.uint16)[None], 16, 1), 48, 0)  # four upright bars
    with av.open(str(tmp_path / "high.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv444p10le"
        context = stream.codec_context
        context.color_trc, context.color_primaries, context.colorspace, context.color_range = (
            transfer,
            9,
            9,
            1,
        )
        frame = av.VideoFrame.from_ndarray(image, "rgb48le")
        frame = frame.reformat(format="yuv444p10le", dst_colorspace=9, dst_color_range=1)
        frame.color_trc, frame.color_primaries = transfer, 9
        frame.pts = 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    reader = read_frames(tmp_path / "high.mkv")
    (seen,) = reader
    assert np.abs(seen.image[20, 8::16] - wanted).max() <= 6
    assert np.abs(seen.crop((4, 4, 12, 12))[0] - wanted[0]).max() <= 6
    assert HIGH_RANGE[transfer] in reader.remark


# Kinds and streams


def test_content_decides_what_a_file_is(tmp_path):
    video = write(tmp_path / "v.mp4", moving(3))
    for name in ("v.jpg", "v", "v.txt"):
        (tmp_path / name).write_bytes(video.read_bytes())
        assert media_kind(tmp_path / name) == "video", name
    for ending, codec, container_format in (
        (".mkv", "mpeg4", "matroska"),
        (".avi", "mpeg4", "avi"),
        (".ts", "mpeg2video", "mpegts"),
        (".mpg", "mpeg2video", "mpeg"),
        (".flv", "flv1", "flv"),
    ):
        other = write(tmp_path / f"v{ending}", moving(3), codec, container_format=container_format, rate=25)
        renamed = other.rename(tmp_path / f"{ending[1:]}.png")
        assert media_kind(renamed) == "video", ending
    for image_format in ("JPEG", "PNG", "WEBP", "GIF", "TIFF"):
        Image.new("RGB", (4, 4)).save(tmp_path / "picture.mp4", image_format)
        assert media_kind(tmp_path / "picture.mp4") == "image", image_format
    assert media_kind("absent.mpo") == "image" and {
        media_kind(f"a.{end}") for end in ("ogg", "dv", "divx", "mpe", "3gpp")
    } == {"video"}
    for name in ("v.m4a", "v.nef"):
        (tmp_path / name).write_bytes(video.read_bytes())
        assert media_kind(tmp_path / name) is None, name
    (tmp_path / "notes.txt").write_text("and skip the rest")
    assert media_kind(tmp_path / "notes.txt") is None
    assert [source.problem for source in find_media([tmp_path / "v"])] == [None]


def test_of_several_streams_the_default_one_is_read_and_that_is_said(tmp_path):
    with av.open(str(tmp_path / "two.mkv"), "w") as container:
        streams = [container.add_stream("mpeg4", rate=10) for _ in range(2)]
        for stream in streams:
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        streams[0].disposition, streams[1].disposition = Disposition(0), Disposition.default
        for stream, level in zip(streams, (30, 200), strict=True):
            for number in range(3):
                frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), level, np.uint8), "rgb24")
                frame.pts = number
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    reader = read_frames(tmp_path / "two.mkv")
    assert abs(next(reader).image.mean() - 200) < 5
    assert "2 video streams: only stream 1" in reader.remark


# Pages and turned faces


class MarkedFaces:
    """Finds a bright square, and its eyes where a darker band lies in it: they are above the mouth in upright images."""

    working_size = 4096

    def detect(self, image):
        rows, columns = np.nonzero(image[..., 0] > 150)
        if not len(rows):
            return Detections(*(np.zeros(shape, np.float32) for shape in ((0, 4), 0, (0, 5, 2))))
        box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], np.float32)
        middle = (box[:2] + box[2:]) / 2
        band = np.argwhere((image[..., 0] > 150) & (image[..., 0] < 210))[:, ::-1].mean(0)
        toward = 0.5 * (middle - band)
        across = np.array([toward[1], -toward[0]])
        points = [
            middle - toward + across,
            middle - toward - across,
            middle,
            middle + toward + across,
            middle + toward - across,
        ]
        return Detections(box[None], np.ones(1, np.float32), np.array(points, np.float32)[None])


def face(turn=0, shift=0):
    """An image of 200 x 160 pixels with one such face, after quarter turns."""
    image = np.full((160, 200, 3), 40, np.uint8)
    image[40:120, 60 + shift : 140 + shift] = 240
    image[50:60, 70 + shift : 130 + shift] = 180
    return np.ascontiguousarray(np.rot90(image, turn))


BLANK = np.full((160, 200, 3), 40, np.uint8)


def views_of(path, **options):
    detector = Detector(
        "brightness", None, smallest_face=20, minimum_frames=1, input_size=32, cut=cut_as_mesonet
    )
    found = extract_views(path, [detector], MarkedFaces(), Sampling(), **options)
    return found, list(found.views)


def save_frames(path, images, **options):
    first, *rest = (Image.fromarray(image) for image in images)
    first.save(path, save_all=True, append_images=rest, **options)
    return path


def test_all_pages_of_a_tiff_are_seen(tmp_path):
    found, seen = views_of(save_frames(tmp_path / "p.tif", [BLANK, face(), BLANK, face(shift=20)]))
    assert [int(track.frame_indices[0]) for track in found.tracks] == [1, 3] and len(seen) == 2
    assert found.remark == "It has 4 pages; faces are on page 2, 4."
    assert (
        views_of(save_frames(tmp_path / "q.tif", [BLANK, BLANK]))[0].remark
        == "It has 2 pages, all without a face."
    )


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.mpo"])
def test_a_blank_first_frame_hides_no_face(tmp_path, name):
    images = [BLANK, BLANK + np.uint8(20), face(), face(shift=4)]
    options = {"lossless": True} if name == "a.webp" else {}
    found, seen = views_of(save_frames(tmp_path / name, images, **options))
    assert len(found.tracks) == len(seen) == 1
    assert "number 3, the first with a face" in found.remark


@pytest.mark.parametrize("turn", [1, 2, 3])
def test_turned_faces_are_set_upright_and_that_is_said(tmp_path, turn):
    Image.fromarray(face()).save(tmp_path / "upright.png")
    Image.fromarray(face(turn)).save(tmp_path / "turned.png")
    _, (upright,) = views_of(tmp_path / "upright.png")
    found, (seen,) = views_of(tmp_path / "turned.png")
    assert np.abs(seen.pixels.astype(int) - upright.pixels).mean() < 3
    assert ("upside down" if turn == 2 else "sideways") in found.remark
    with av.open(str(tmp_path / "turned.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        image = face(turn)
        stream.height, stream.width, stream.pix_fmt = *image.shape[:2], "bgr0"
        for number in range(8):
            frame = av.VideoFrame.from_ndarray(image, "rgb24").reformat(format="bgr0")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    found, seen = views_of(tmp_path / "turned.mkv")
    assert len(seen) == 8 and np.abs(seen[0].pixels.astype(int) - upright.pixels).mean() < 3
    assert "turned by" in found.remark


def test_nothing_looked_at_and_no_number_are_two_sentences():
    track = SimpleNamespace(boxes=np.tile([0.0, 0, 90, 90], (9, 1)), frame_indices=np.arange(9))
    found = SimpleNamespace(tracks=[track], stream=None, kind="picture", minimum_frames=lambda detector: 1)
    detector = Detector("brightness", None)
    assert "did not output a number" in explain_missing_score(found, detector)[1]
    assert "Nothing was looked at" in explain_missing_score(found, detector, False)[1]


def test_a_detector_that_had_no_say_is_named(tmp_path):
    Image.fromarray(patches(200, side=30)).save(tmp_path / "small.png")
    easy = replace(detector_of(Brightness()), name="easy", smallest_face=20)
    strict = replace(detector_of(Brightness()), name="strict", smallest_face=200)
    moving_only = replace(detector_of(Brightness()), name="of-videos", kinds=("video",))
    scorer = MediaScorer([easy, strict, moving_only], calibration=False, face_detector=WhiteSquares())
    verdict = scorer.score(tmp_path / "small.png")
    assert verdict.score is not None
    assert "strict had no say: the faces are too small" in verdict.reason
    assert "of-videos had no say: it does not judge images." in verdict.reason


def test_sound_is_not_examined(tmp_path):
    with av.open(str(tmp_path / "loud.mkv"), "w") as container:
        video, audio = container.add_stream("mpeg4", rate=10), container.add_stream("pcm_s16le", rate=8000)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        sound.sample_rate, sound.pts = 8000, 0
        container.mux(audio.encode(sound))
        for number, image in enumerate(moving(3)):
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            frame.pts = number
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    reader = read_frames(tmp_path / "loud.mkv")
    assert len(list(reader)) == 3 and reader.remark == "The sound was not examined."

"""Video in and out: rotation, times, colours, exact seeking, damage, flat memory, the same bytes twice."""

import contextlib
import dataclasses
import gc
import math
import os
import pickle
import sys
import time
from fractions import Fraction
from functools import partial

import av
import cv2
import numpy as np
import pytest
from commands import allow_files_of, run
from layouts import BLUE, GREEN, RED, WHITE, encode, quarters
from PIL import Image

from deepfake_nb.media import video
from deepfake_nb.media.video import (
    Frame,
    UnreadableMedia,
    is_animated,
    media_kind,
    probe,
    read_frames,
    recompress,
    recompress_frames,
    write_video,
)
from deepfake_nb.study.files import InputError, sha256_of


def numbered(count, height=32, width=64):
    """Frames that carry their number as ten black or white stripes."""
    for number in range(count):
        image = np.zeros((height, width, 3), np.uint8)
        for bit in range(10):
            image[:, 6 * bit : 6 * bit + 6] = 235 if number >> bit & 1 else 20
        yield image


def number_in(image):
    return sum((image[16, 6 * bit + 3, 1] > 128) << bit for bit in range(10))


def psnr(first, second):
    return 10 * math.log10(255**2 / max(np.mean((first.astype(float) - second) ** 2), 1e-9))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """400 numbered frames with B-frames and a key frame every 40."""
    path = tmp_path_factory.mktemp("clip") / "numbered.mp4"
    return encode(path, numbered(400), options={"g": "40", "crf": "20"})


# Which frames


def test_every_frame_has_its_index_and_time(clip):
    frames = list(read_frames(clip))
    assert [number_in(frame.image) for frame in frames] == list(range(400))
    assert [frame.index for frame in frames] == list(range(400))
    assert np.allclose([frame.time_s for frame in frames], np.arange(400) / 25)


@pytest.mark.parametrize(
    "indices", [[0], [399], [3, 1, 3], [39, 40, 41], [200, 203, 395, 7], list(range(90, 130)), [47]]
)
def test_indices_give_exactly_these_frames(clip, indices):
    wanted = sorted(set(indices))
    frames = list(read_frames(clip, indices=indices))
    assert [frame.index for frame in frames] == wanted
    assert [number_in(frame.image) for frame in frames] == wanted
    assert np.allclose([frame.time_s for frame in frames], np.array(wanted) / 25)


def test_random_indices_in_files_of_many_kinds(tmp_path):
    rng = np.random.default_rng(0)
    kinds = {
        "open.mp4": ("libx264", "yuv420p", {"x264-params": "open-gop=1:keyint=25:bframes=3"}),
        "refresh.mkv": ("libx264", "yuv420p", {"x264-params": "intra-refresh=1:keyint=25"}),
        "hevc.mp4": ("libx265", "yuv420p", {"x265-params": "keyint=25:log-level=none"}),
        "vp9.webm": ("libvpx-vp9", "yuv420p", {"g": "25", "deadline": "realtime", "cpu-used": "8"}),
        "vp8.webm": (
            "libvpx",
            "yuv420p",
            {"g": "25", "deadline": "realtime", "cpu-used": "8", "auto-alt-ref": "1", "lag-in-frames": "10"},
        ),
        "mpeg4.avi": ("mpeg4", "yuv420p", {"g": "25"}),
        "mpeg2.ts": ("mpeg2video", "yuv420p", {"g": "12", "bf": "2"}),
        "h264.ts": ("libx264", "yuv420p", {"g": "25"}),
        "intra.mov": ("prores_ks", "yuv422p10le", {}),
    }
    for name, (codec, pixel_format, options) in kinds.items():
        path = encode(tmp_path / name, numbered(160), codec=codec, pixel_format=pixel_format, options=options)
        dense = {frame.index: frame for frame in read_frames(path)}
        assert sorted(dense) == list(range(160)), name
        for wanted in (sorted(rng.choice(160, 6, replace=False)), [150], [60, 61, 62], [30, 155]):
            got = list(read_frames(path, indices=wanted))
            assert [frame.index for frame in got] == list(wanted), name
            for frame in got:
                assert frame.time_s == pytest.approx(dense[frame.index].time_s), name
                assert np.array_equal(frame.image, dense[frame.index].image), (name, frame.index)


def test_stride_window_and_limit(clip):
    def places(**choice):
        return [frame.index for frame in read_frames(clip, **choice)]

    assert places(stride=100) == [0, 100, 200, 300]
    assert places(stride=7, max_frames=3) == [0, 7, 14]
    assert places(start_s=1.0, stop_s=1.2) == [25, 26, 27, 28, 29]
    assert places(start_s=10.0, stop_s=10.5, stride=4) == [250, 254, 258, 262]
    assert places(start_s=15.9) == [398, 399]
    assert places(indices=[5, 6, 7], max_frames=2) == [5, 6]
    assert places(indices=[398, 399, 400, 5000]) == [398, 399]
    for start_s in (2.52, 7.0):
        (frame,) = read_frames(clip, start_s=start_s, max_frames=1)
        assert number_in(frame.image) == frame.index == round(start_s * 25)


def test_far_frames_are_reached_by_seeking(tmp_path):
    path = encode(tmp_path / "long.mp4", numbered(1000, 240, 320), options={"g": "50", "preset": "ultrafast"})
    took = {}
    for name, choice in {"last": {"indices": [995]}, "all": {}}.items():
        started = time.perf_counter()
        assert max(frame.index for frame in read_frames(path, threads=1, **choice)) >= 995
        took[name] = time.perf_counter() - started
    assert took["last"] < took["all"] / 2


@pytest.mark.parametrize(
    "choice, says",
    [
        ({"stride": 0}, "stride must be a whole number"),
        ({"stride": 1.5}, "stride must be a whole number"),
        ({"longest_side": 0}, "longest_side must be"),
        ({"max_frames": -1}, "max_frames must be"),
        ({"indices": []}, "at least one number"),
        ({"indices": [-1]}, "none below 0"),
        ({"indices": [1], "stride": 2}, "not both"),
        ({"start_s": 2, "stop_s": 1}, "time window"),
        ({"start_s": float("nan")}, "time window"),
        ({"start_s": 99.0}, "no frame in the range"),
        ({"start_s": 1.001, "stop_s": 1.002}, "no frame in the range"),
        ({"indices": [4000]}, "no frame in the range"),
    ],
)
def test_a_choice_without_sense_is_refused(clip, choice, says):
    with pytest.raises(InputError, match=says):
        list(read_frames(clip, **choice))


# Times


def test_variable_frame_rate_gives_presentation_times(tmp_path):
    ticks = np.cumsum([0, 40, 40, 200, 33, 500, 40, 7, 40, 1000])
    path = encode(tmp_path / "variable.mp4", numbered(10), ticks=ticks.tolist())
    frames = list(read_frames(path))
    assert np.allclose([frame.time_s for frame in frames], ticks / 1000)
    assert [number_in(frame.image) for frame in frames] == list(range(10))
    assert [frame.index for frame in read_frames(path, start_s=0.3, stop_s=0.9)] == [4, 5, 6, 7]
    again = recompress(path, tmp_path / "again.mp4")
    assert np.allclose([frame.time_s for frame in read_frames(again)], ticks / 1000, atol=1e-4)
    steady = recompress(path, tmp_path / "steady.mp4", frame_rate=10)
    assert [number_in(frame.image) for frame in read_frames(steady)] == [0, 2, 2, 3, 4, 4, 4, 4, 4] + [
        8
    ] * 10 + [9]


@pytest.mark.parametrize("name", ["late.mp4", "late.mkv", "late.ts"])
def test_a_stream_that_starts_late_starts_at_zero(tmp_path, name):
    ticks = [5000 + 40 * place for place in range(100)]
    path = encode(tmp_path / name, numbered(100), ticks=ticks, options={"g": "20"})
    assert np.allclose([frame.time_s for frame in read_frames(path)], np.arange(100) / 25, atol=1e-3)
    (frame,) = read_frames(path, indices=[90])
    assert (number_in(frame.image), frame.time_s) == (90, pytest.approx(3.6, abs=1e-3))


def test_a_raw_stream_has_no_times_and_no_count(tmp_path):
    path = encode(tmp_path / "raw.h264", numbered(60), options={"g": "20"})
    frames = list(read_frames(path))
    assert [number_in(frame.image) for frame in frames] == list(range(60))
    assert np.all(np.diff([frame.time_s for frame in frames]) > 0)
    assert probe(path).frame_count is None


# Which way is up


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_rotation_is_honoured(tmp_path, turn):
    path = encode(
        tmp_path / "turned.mp4", [quarters()] * 3, rotation=turn
    )  # counter-clockwise, in PyAV's words
    expected = np.rot90(quarters(), turn // 90)
    info = probe(path)
    assert (info.height, info.width) == expected.shape[:2]
    assert info.rotation == (360 - turn) % 360
    frame = next(read_frames(path))
    assert frame.shape == expected.shape[:2]
    pixels, corner = frame.crop((3, 5, 40, 44))  # before the whole frame is converted
    small = frame.resized(32)
    assert psnr(frame.image, expected) > 30
    assert corner == (3, 5) and np.array_equal(pixels, frame.image[5:44, 3:40])
    assert max(small.shape) == 32 and psnr(small, cv2.resize(expected, small.shape[1::-1])) > 20


def test_a_mirrored_clip_is_mirrored_back(tmp_path):
    path = encode(tmp_path / "front.mp4", [quarters()] * 2, mirrored=True)
    assert psnr(next(read_frames(path)).image, np.fliplr(quarters())) > 30


def test_rotation_sign_against_the_bytes_of_the_file(tmp_path):
    """A phone held upright writes (a, b, c, d) = (0, 1, -1, 0): turn by a quarter, clockwise, to show."""
    path = encode(tmp_path / "phone.mp4", [quarters()] * 2)
    content = bytearray(path.read_bytes())
    header = content.index(b"tkhd")
    one, minus_one = (65536).to_bytes(4, "big"), (2**32 - 65536).to_bytes(4, "big")
    matrix = b"".join(
        [bytes(4), one, bytes(4), minus_one, bytes(4), bytes(4), bytes(8), (1 << 30).to_bytes(4, "big")]
    )
    content[header + 4 + 40 : header + 4 + 76] = matrix
    path.write_bytes(content)
    assert probe(path).rotation == 90
    assert psnr(next(read_frames(path)).image, np.rot90(quarters(), -1)) > 30


# Colours and shapes


@pytest.mark.parametrize("color_range", [1, 2])
@pytest.mark.parametrize("colorspace", [1, 5])
def test_matrix_and_range_are_those_the_file_states(tmp_path, colorspace, color_range):
    path = encode(tmp_path / "colour.mp4", [quarters()] * 2, colorspace=colorspace, color_range=color_range,
                  options={"crf": "5"})  # fmt: skip
    image = next(read_frames(path)).image
    for (y, x), colour in {(10, 10): RED, (10, 50): GREEN, (40, 10): BLUE, (40, 50): WHITE}.items():
        assert np.abs(image[y, x].astype(int) - colour).max() <= 4


def test_ten_bits(tmp_path):
    ramp = np.repeat(np.linspace(0, 65535, 256).astype(np.uint16)[None, :, None], 64, 0).repeat(3, 2)
    path = encode(tmp_path / "ten.mp4", [ramp] * 2, pixel_format="yuv420p10le", source_format="rgb48le",
                  options={"crf": "5"})  # fmt: skip
    assert probe(path).pixel_format == "yuv420p10le"
    frame = next(read_frames(path))
    pixels, _ = frame.crop((101, 3, 200, 60))
    assert frame.resized(128).shape == (32, 128, 3)
    assert psnr(frame.image, (ramp // 257).astype(np.uint8)) > 40
    assert np.array_equal(pixels, frame.image[3:60, 101:200])


@pytest.mark.parametrize(
    "codec, name, color_range", [("ffv1", "g.mkv", 2), ("ffv1", "g.mkv", 1), ("libx264", "g.mp4", 2)]
)
def test_grey(tmp_path, codec, name, color_range):
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None], 32, 0)
    stored = ramp if color_range == 2 else np.round(ramp * (219 / 255) + 16).astype(np.uint8)
    path = encode(tmp_path / name, [stored] * 2, codec=codec, pixel_format="gray", source_format="gray",
                  color_range=color_range, options={"crf": "1"} if codec == "libx264" else {})  # fmt: skip
    frame = next(read_frames(path))
    assert frame.resized(64).shape == (8, 64, 3)
    assert psnr(frame.image, np.repeat(ramp[..., None], 3, 2)) > 40


@pytest.mark.parametrize("codec, pixel_format, name", [("qtrle", "argb", "a.mov"), ("png", "rgba", "a.mov"),
                                                       ("libvpx-vp9", "yuva420p", "a.webm")])  # fmt: skip
def test_alpha_is_laid_on_mid_grey(tmp_path, codec, pixel_format, name):
    image = np.zeros((64, 64, 4), np.uint8)
    image[:, :32] = 255, 255, 255, 255
    path = encode(tmp_path / name, [image] * 3, codec=codec, pixel_format=pixel_format, source_format="rgba")
    frame = next(read_frames(path))
    for pixels in (frame.crop((0, 0, 64, 64))[0], frame.image):
        assert np.abs(pixels[:, :24].astype(int) - 255).max() < 6
        assert np.abs(pixels[:, 40:].astype(int) - 128).max() < 6
    assert np.abs(frame.resized(16)[:, 12:].astype(int) - 128).max() < 6


def test_pixels_that_are_not_square(tmp_path):
    path = encode(tmp_path / "wide.mp4", [quarters(48, 64)] * 2, aspect=Fraction(4, 3))
    frame = next(read_frames(path))
    assert (probe(path).width, probe(path).height, frame.shape) == (85, 48, (48, 85))
    assert frame.image.shape == (48, 85, 3)
    assert frame.image[10, 38, 0] > 200 > 100 > frame.image[10, 48, 0]  # red up to the middle
    assert np.array_equal(frame.crop((10, 10, 60, 40))[0], frame.image[10:40, 10:60])


@pytest.mark.parametrize("codec, name", [("ffv1", "odd.mkv"), ("libvpx-vp9", "odd.webm")])
def test_odd_sizes_are_read_whole(tmp_path, codec, name):
    path = encode(tmp_path / name, [quarters(47, 63)] * 2, codec=codec)
    frame = next(read_frames(path))
    pixels, _ = frame.crop((11, 7, 63, 47))
    assert frame.image.shape == (47, 63, 3)
    assert np.array_equal(pixels, frame.image[7:47, 11:63])


def test_a_size_that_changes_on_the_way_is_fitted_into_the_first(tmp_path):
    parts = [encode(tmp_path / f"{side}.h264", [quarters(side, 64)] * 5) for side in (48, 96)]
    joined = tmp_path / "joined.h264"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    frames = list(read_frames(joined))
    assert [frame.image.shape for frame in frames] == [(48, 64, 3)] * 10
    assert not frames[-1].image[:, :8].any() and frames[-1].image[:, 20:40].any()
    assert np.array_equal(list(read_frames(joined))[-1].crop((5, 5, 50, 40))[0], frames[-1].image[5:40, 5:50])
    (chosen,) = read_frames(joined, indices=[9])  # a second pass has to meet the pixels of the first
    assert np.array_equal(chosen.image, frames[-1].image)


def test_frames_from_arrays_and_through_pickle(clip):
    image = quarters()
    frame = Frame(3, 0.5, image)
    assert (frame.index, frame.time_s, frame.image is image, frame.shape) == (3, 0.5, True, (48, 64))
    assert frame.resized(32).shape == (24, 32, 3) and frame.resized(1000) is image
    decoded = next(read_frames(clip))
    copied = pickle.loads(pickle.dumps(decoded))
    assert copied.index == 0 and np.array_equal(copied.image, decoded.image)
    changed = dataclasses.replace(decoded, image=image)
    assert changed.image is image and changed.time_s == decoded.time_s
    with pytest.raises(AttributeError):
        _ = frame.picture
    assert decoded.crop((-50, -50, -10, -10))[0].size == 0


def test_longest_side_never_enlarges(clip):
    assert next(read_frames(clip, longest_side=32)).image.shape == (16, 32, 3)
    assert next(read_frames(clip, longest_side=4000)).image.shape == (32, 64, 3)


# Damage


def cut_anywhere(path, target, share):
    content = path.read_bytes()
    target.write_bytes(content[: int(len(content) * share)])
    return target


def noisy(count, height=64, width=96):
    rng = np.random.default_rng(0)
    yield from (rng.integers(0, 255, (height, width, 3), dtype=np.uint8) for _ in range(count))


@pytest.mark.timeout(60)
def test_a_file_whose_index_is_missing_is_refused(tmp_path):
    whole = encode(tmp_path / "whole.mp4", noisy(30))
    with pytest.raises(UnreadableMedia, match=r"cut.*Copy or download it again"):
        read_frames(cut_anywhere(whole, tmp_path / "cut.mp4", 0.5))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["whole.mp4", "whole.mkv"])
def test_a_file_whose_end_is_missing_gives_what_is_there(tmp_path, name):
    whole = encode(
        tmp_path / name, noisy(60), container_options={"movflags": "faststart"} if "mp4" in name else {}
    )
    stream = read_frames(whole)
    assert len(list(stream)) == 60 and stream.damage == "" and not stream.cut_short
    stream = read_frames(cut_anywhere(whole, tmp_path / f"cut-{name}", 0.5))
    frames = list(stream)
    assert 20 < len(frames) < 40
    assert [frame.index for frame in frames] == list(range(len(frames)))
    assert stream.cut_short and "before the length that it states" in stream.damage


@pytest.mark.timeout(60)
def test_a_file_with_no_frame_left_is_refused(tmp_path):
    whole = encode(tmp_path / "whole.mp4", noisy(30), container_options={"movflags": "faststart"})
    start = whole.read_bytes().index(b"mdat") + 8
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(whole.read_bytes()[:start] + bytes(4000))
    for use in (probe, lambda path: next(read_frames(path))):
        with pytest.raises(UnreadableMedia, match=r"No frame of .*broken\.mp4.* can be decoded"):
            use(broken)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("threads", [1, 0])
def test_a_damaged_packet_is_skipped_and_the_rest_keeps_its_place(tmp_path, threads):
    path = encode(tmp_path / "whole.mp4", numbered(60, 64, 64), options={"g": "10", "bf": "0"})
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    content = bytearray(path.read_bytes())
    position, size = packets[25]
    content[position : position + size] = b"\xff" * size
    path.write_bytes(content)
    stream = read_frames(path, threads=threads)
    frames = list(stream)
    assert stream.lost_packets >= 1 and "could not be decoded" in stream.damage
    assert 25 not in [frame.index for frame in frames] and len(frames) == 59
    assert all(number_in(frame.image) == frame.index for frame in frames if not 25 <= frame.index < 30)
    assert np.allclose([frame.time_s for frame in frames], [frame.index / 25 for frame in frames])


@pytest.mark.timeout(120)
def test_noise_in_any_file_neither_hangs_nor_crashes(tmp_path):
    rng = np.random.default_rng(1)
    for name, codec in {
        "a.mp4": "libx264",
        "b.mkv": "libx264",
        "c.webm": "libvpx-vp9",
        "d.avi": "mpeg4",
        "e.ts": "mpeg2video",
    }.items():
        content = np.frombuffer(encode(tmp_path / name, noisy(20), codec=codec).read_bytes(), np.uint8)
        for _ in range(8):
            hurt = content.copy()
            hurt[rng.integers(0, len(hurt), 30)] = rng.integers(0, 255, 30)
            path = tmp_path / f"hurt-{name}"
            path.write_bytes(hurt.tobytes())
            with contextlib.suppress(InputError):
                assert sum(1 for frame in read_frames(path) if frame.image.ndim == 3) <= 2000


# Files that are no videos


def sound_only(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        for place in range(10):
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            sound.sample_rate, sound.pts = 16000, place * 1024
            container.mux(stream.encode(sound))
        container.mux(stream.encode(None))


BAD_FILES = {
    "empty.mp4": (lambda path: path.write_bytes(b""), "is empty"),
    "text.mp4": (lambda path: path.write_text("this is no video\n" * 100), "not a video"),
    "noise.mkv": (lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)), "not a video"),
    "missing.mp4": (lambda path: None, "There is no file"),
    "folder.mp4": (lambda path: path.mkdir(), "is a folder"),
    "pipe.mp4": (os.mkfifo, "not an ordinary file"),
    "sound.m4a": (sound_only, "sound but no video"),
    "list.mp4": (lambda path: path.write_text("#EXTM3U\n#EXTINF:1,\nother.ts\n#EXT-X-ENDLIST\n"), "list.mp4"),
    "a/b/c.mp4": (lambda path: None, "There is no file"),
    "x" * 300 + ".mp4": (lambda path: None, "Check the path"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", BAD_FILES)
def test_what_is_no_video_is_refused_in_a_sentence(tmp_path, name):
    make, says = BAD_FILES[name]
    path = tmp_path / name
    make(path)
    for use in (probe, read_frames, lambda path: recompress(path, tmp_path / "target.mp4")):
        with pytest.raises(UnreadableMedia, match=says) as caught:
            use(path)
        assert repr(str(path)) in str(caught.value) and str(caught.value).endswith(".")
    assert not (tmp_path / "target.mp4").exists()


def test_a_frame_of_absurd_size_is_refused(clip, monkeypatch):
    monkeypatch.setattr(video, "_MOST_PIXELS", 1000)
    with pytest.raises(UnreadableMedia, match="more than 1,000 pixels"):
        read_frames(clip)


@contextlib.contextmanager
def without_privileges():
    if os.geteuid() == 0:
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)
    else:
        yield


@pytest.mark.skipif(os.name != "posix", reason="needs file permissions")
def test_no_permission_to_read(clip, tmp_path):
    locked = tmp_path / "locked.mp4"
    locked.write_bytes(clip.read_bytes())
    locked.chmod(0)
    with without_privileges(), pytest.raises(UnreadableMedia, match=r"No permission to read .*locked\.mp4"):
        read_frames(locked)


@pytest.mark.parametrize(
    "name", ["with space.mp4", "ünï – 名前.mp4", "percent%03d.mp4", "a:b.mp4", "-dash.mp4", b"bytes\xff.mp4"]
)
def test_any_file_name_will_do(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    name = os.fsdecode(name)
    write_video(name, [quarters()] * 2, 25)
    assert probe(name).frame_count == len(list(read_frames(name))) == 2


def test_media_kind():
    assert media_kind("A/b.MOV") == "video" and media_kind("x.heic") == "image"
    assert media_kind("readme.md") is None and media_kind("none") is None


@pytest.mark.parametrize(
    "name, animated",
    [
        ("a.gif", True),
        ("a.webp", True),
        ("a.png", True),
        ("a.tiff", False),
        ("a.mpo", False),
        ("one.gif", False),
    ],
)
def test_animations_are_distinguished_from_pages_and_previews(tmp_path, name, animated):
    pictures = [Image.fromarray(quarters()), Image.fromarray(quarters()[::-1].copy())]
    pictures[0].save(tmp_path / name, save_all=True, append_images=[] if "one" in name else pictures[1:])
    assert is_animated(tmp_path / name) is animated
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:20])
    assert not is_animated(tmp_path / name) and not is_animated(tmp_path / "absent.gif")


# Writing


def test_what_is_written_is_read_back(tmp_path):
    frames = [np.roll(quarters(96, 128), 2 * shift, 1) for shift in range(10)]
    path = write_video(
        tmp_path / "new folder" / "out.mp4", (Frame(0, 0.0, image) for image in frames), 30000 / 1001
    )
    info = probe(path)
    assert (info.codec, info.pixel_format, info.frame_count, info.has_audio) == ("h264", "yuv420p", 10, False)
    assert info.frame_rate == pytest.approx(30000 / 1001, rel=1e-4)
    assert info.duration_s == pytest.approx(10 * 1001 / 30000, abs=1e-3)
    assert all(psnr(read.image, image) > 33 for read, image in zip(read_frames(path), frames, strict=True))
    assert path.read_bytes().index(b"moov") < path.read_bytes().index(b"mdat")
    assert list(path.parent.iterdir()) == [path]


def test_readers_that_ignore_colour_tags_get_the_same_colours(tmp_path):
    path = write_video(tmp_path / "out.mp4", [quarters(96, 128)] * 2, 25)
    worked, image = cv2.VideoCapture(str(path)).read()
    assert worked and psnr(image[..., ::-1], quarters(96, 128)) > 30


def test_the_same_frames_give_the_same_bytes(tmp_path):
    """Some x264 look-ahead code reads memory nobody wrote; dirty the memory between runs to notice."""
    sizes, sums = [(128, 168), (120, 160), (240, 320)], {}
    for size in sizes:
        frames = [np.roll(quarters(*size), 3 * shift, 1) for shift in range(30)]
        for turn in range(6):
            junk = [np.full(20_000 * (part % 6 + 1), 37 * turn + part, np.uint8) for part in range(30)]
            del junk
            path = write_video(tmp_path / "out.mp4", frames, 25)
            sums.setdefault(size, set()).add(sha256_of(path))
            list(read_frames(path, longest_side=64))
    assert [len(sums[size]) for size in sizes] == [1, 1, 1]


def test_a_bitrate_gives_the_same_bytes_too(tmp_path):
    rng = np.random.default_rng(0)
    texture = cv2.GaussianBlur(rng.integers(0, 255, (200, 200, 3), dtype=np.uint8), (0, 0), 3)
    frames = [texture[shift : shift + 68, shift : shift + 68] for shift in range(33)]
    sums = {sha256_of(write_video(tmp_path / "out.mp4", frames, 25, bitrate=20_000)) for _ in range(15)}
    assert len(sums) == 1


def test_bitrate_is_kept(tmp_path):
    rng = np.random.default_rng(0)
    texture = cv2.GaussianBlur(rng.integers(0, 255, (240, 1000, 3), dtype=np.uint8), (0, 0), 1)
    frames = [texture[:, 5 * shift : 5 * shift + 320] for shift in range(100)]
    for bitrate in (150e3, 600e3):
        path = write_video(tmp_path / "out.mp4", frames, 25, bitrate=bitrate)
        assert 0.6 * bitrate < path.stat().st_size * 8 / 4 < 1.2 * bitrate


def test_recompress(clip, tmp_path):
    small = recompress(clip, tmp_path / "small.mp4", crf=30, longest_side=48)
    assert (probe(small).width, probe(small).height, probe(small).frame_count) == (48, 24, 400)
    with pytest.raises(InputError, match="is the source itself"):
        recompress(clip, clip)


def test_recompress_frames_keeps_count_order_and_odd_sizes():
    images = np.stack(list(numbered(70, 33, 65)))
    again = recompress_frames(images, crf=25)
    assert again.shape == images.shape and again.dtype == np.uint8
    assert [number_in(image) for image in again] == list(range(70))
    assert psnr(recompress_frames(images, crf=10), images) > psnr(recompress_frames(images, crf=40), images)
    assert recompress_frames([images[0]]).shape == (1, 33, 65, 3)
    assert np.array_equal(recompress_frames(images, bitrate=1e5), recompress_frames(images, bitrate=1e5))


def test_odd_and_tiny_sizes_are_written(tmp_path):
    for shape in ((1, 1), (47, 63), (2, 300)):
        image = np.full((*shape, 3), 200, np.uint8)
        path = write_video(tmp_path / "odd.mp4", [image] * 3, 25)
        even = tuple(side + side % 2 for side in shape)
        read = next(read_frames(path)).image
        assert read.shape == (*even, 3) and np.abs(read.astype(int) - 200).max() < 6


@pytest.mark.parametrize(
    "frames, choice, says",
    [
        ([], {}, "no frames"),
        ([quarters(), quarters(50, 64)], {}, "one size"),
        ([quarters().astype(float)], {}, "must be uint8"),
        ([quarters()[..., 0]], {}, "must be uint8"),
        ([quarters()], {"crf": 23, "bitrate": 1e6}, "not both"),
        ([quarters()], {"crf": 60}, "crf must lie"),
        ([quarters()], {"bitrate": 10}, "bitrate must lie"),
        ([quarters()], {"preset": "swift"}, "no preset 'swift'"),
        ([quarters()], {"frame_rate": 0}, "frame_rate must lie"),
        ([quarters()], {"frame_rate": float("nan")}, "frame_rate must lie"),
        ([quarters()], {"path": "out.gif"}, "ending must be"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, frames, choice, says):
    choice = {"path": "out.mp4", "frame_rate": 25} | choice
    with pytest.raises(InputError, match=says):
        write_video(tmp_path / choice.pop("path"), iter(frames), **choice)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_half_way_leaves_the_old_file(tmp_path):
    path = write_video(tmp_path / "out.mp4", [quarters()] * 3, 25)
    before = sha256_of(path)

    def failing():
        yield from [quarters()] * 30
        raise KeyError("half way")

    with pytest.raises(KeyError):
        write_video(path, failing(), 25)
    assert sha256_of(path) == before and list(tmp_path.iterdir()) == [path]


FULL_DISK = """
import sys
import numpy as np
from deepfake_nb.media import video
from deepfake_nb.study.files import InputError
from deepfake_nb.media.video import write_video
rng = np.random.default_rng(0)
try:
    write_video(sys.argv[1], (rng.integers(0, 255, (240, 320, 3), dtype=np.uint8) for _ in range(60)), 25)
except InputError as error:
    print("sentence:", error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on file size")
def test_a_full_disk_is_a_sentence(tmp_path):
    full = partial(allow_files_of, 50_000)
    done = run(sys.executable, "-c", FULL_DISK, tmp_path / "out.mp4", timeout=60, preexec_fn=full)
    assert "sentence: Cannot write" in done.stdout, done.stderr
    assert list(tmp_path.iterdir()) == []


# Memory


def resident_mib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmRSS"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_length(tmp_path):
    path = write_video(
        tmp_path / "long.mp4", (image for image in numbered(3000, 90, 160)), 25, preset="ultrafast"
    )
    levels = []
    gc.disable()  # a frame in a reference cycle would wait for the collector
    try:
        for frame in read_frames(path):
            assert frame.image.size
            if frame.index in (500, 2900):
                levels.append(resident_mib())
    finally:
        gc.enable()
    before = resident_mib()
    recompress(path, tmp_path / "again.mp4", preset="ultrafast")
    assert levels[1] - levels[0] < 10  # the planes of all frames would be 50 MiB, their pixels 100
    assert resident_mib() - before < 60


def test_closing_early_frees_the_file(clip):
    before = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    for _ in range(20):
        with read_frames(clip) as frames:
            first, second = next(frames), next(frames)
    assert (number_in(first.image), number_in(second.image)) == (0, 1)
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before + 1


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_dropped_stream_closes_its_file_at_once(clip):
    gc.disable()
    try:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            next(read_frames(clip))
        assert len(os.listdir("/proc/self/fd")) == before
    finally:
        gc.enable()


# Real files


@pytest.mark.slow
def test_real_clips(shared_data):
    (portrait,) = shared_data.glob("dfdc/*/brtujopkby.mp4")
    info = probe(portrait)
    assert (info.width, info.height, info.has_audio, info.frame_count) == (1080, 1920, True, 300)
    assert [frame.index for frame in read_frames(portrait, stride=100, longest_side=320)] == [0, 100, 200]
    for path in shared_data.glob("ffpp/**/*.mp4"):
        dense = next(frame for frame in read_frames(path, threads=0) if frame.index == 120)
        (sought,) = read_frames(path, indices=[120])
        assert np.array_equal(dense.image, sought.image)
        assert np.array_equal(sought.crop((100, 80, 333, 311))[0], dense.image[80:311, 100:333])

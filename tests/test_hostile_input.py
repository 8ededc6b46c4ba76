"""Damaged media, folders of thousands of files, and hostile file names."""

import contextlib
import csv
import io
import itertools
import json
import os
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import av
import cv2
import numpy as np
import pandas as pd
import pytest
from commands import ROOT, run, status_of
from layouts import Light, encode
from PIL import Image

from deepfake_nb.media.video import UnreadableMedia, read_frames, read_image
from deepfake_nb.people.heads import random_identity
from deepfake_nb.people.rendering import render_video
from deepfake_nb.scoring import score
from deepfake_nb.scoring.score import MediaScorer
from deepfake_nb.scoring.views import Detector, Ready

LIMIT_S = 10
CHILD = """
import sys, time, json, torch
import numpy as np
torch.set_num_threads(1)
from layouts import Everywhere, Light
from deepfake_nb.media.faces import CenterFace
from deepfake_nb.scoring.report import ReportWriter
from deepfake_nb.scoring.score import MediaScorer, Verdicts
from deepfake_nb.scoring.views import ClipDetector, Detector, Ready

def ready(weights=None):
    return Ready(Light(), "none", "nothing")

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

small = {"input_size": 32, "smallest_face": 20}
frames, clips = Detector("frames", ready, **small), ClipDetector("clips", ready, clip_length=8, step=8, **small)
options = {"device": "cpu", "face_detector": CenterFace(working_size=128, threads=1), "calibration": False}
"""


def in_child(script, *arguments):
    """Run a script after `CHILD` in a process of its own: it may crash, and its memory is its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    tests = f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r})"
    command = [sys.executable, "-X", "faulthandler", "-c", tests + CHILD + script, *arguments]
    return run(*command, env=environment, timeout=280)


# --- 150 damaged files --------------------------------------------------------------------------------------------

PICTURES = {".jpg": {}, ".png": {}, ".webp": {}, ".gif": {}, ".bmp": {}, ".tif": {"compression": "tiff_lzw"}, ".ppm": {},
            ".jp2": {}, ".tga": {}, ".avif": {}}  # fmt: skip
VIDEOS = {".mp4": "libx264", ".mkv": "libx264", ".mov": "mpeg4", ".webm": "libvpx-vp9", ".avi": "mpeg4",
          ".mpg": "mpeg2video", ".ts": "libx264", ".mjpeg": "mjpeg", ".flv": "flv", ".h264": "libx264", ".nut": "mpeg4",
          ".wmv": "wmv2", ".ivf": "libvpx", ".3gp": "mpeg4", ".mxf": "mpeg2video"}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One small sound file of each kind, of a rendered person."""
    folder = tmp_path_factory.mktemp("whole")
    images = render_video(random_identity(3), "studio", 12, size=128, seed=0).images
    files = []
    for ending, options in PICTURES.items():
        if ending in Image.registered_extensions():
            Image.fromarray(images[0]).save(folder / f"picture{ending}", **options)
            files.append(folder / f"picture{ending}")
    for ending, codec in VIDEOS.items():
        if codec in av.codecs_available:
            pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            files.append(encode(folder / f"video{ending}", images, codec=codec, pixel_format=pixels))
    assert len(files) >= 20
    return files


def flip_bits(data, places):
    for place in places:
        data[place // 8] ^= 1 << (place % 8)
    return data


def damaged(content, rng, others):
    """Bytes that were hurt in one of seven ways."""
    data, size = bytearray(content), len(content)
    start, stop = sorted(rng.integers(1, size, 2))
    other = others[rng.integers(len(others))]
    ways = {
        "bits": lambda: flip_bits(data, rng.integers(0, 8 * size, rng.choice([1, 8, 64, 1000]))),
        "head": lambda: flip_bits(data, rng.integers(0, 8 * min(size, 400), rng.choice([1, 4, 20]))),
        "tail": lambda: flip_bits(data, rng.integers(8 * max(0, size - 400), 8 * size, 20)),
        "cut": lambda: data[:start],
        "header": lambda: other[:64] + data[64:],
        "hole": lambda: data[:start] + bytes(min(stop - start, 5000)) + data[stop:],
        "moved": lambda: data[:start] + data[stop:] + data[start:stop],
    }
    way = rng.choice(list(ways))
    return way, bytes(ways[way]())


@pytest.mark.slow
def test_150_damaged_files_neither_crash_nor_hang_and_each_is_accounted_for(whole, tmp_path):
    rng, contents = np.random.default_rng(20), [file.read_bytes() for file in whole]
    for number in range(150):
        source = number % len(whole)
        way, data = damaged(contents[source], rng, contents)
        (tmp_path / f"{number:03d}-{way}{whole[source].suffix}").write_bytes(data)
    script = """
import faulthandler
from pathlib import Path
from deepfake_nb.scoring.views import cut_as_mesonet

faulthandler.dump_traceback_later(60, exit=True)
points = np.float32([[-40, 20], [-30, 20], [-35, 26], [-39, 32], [-31, 32]])
for width in (1, 80):  # a face that walks out; OpenCV never ends mirroring the single line that is left of the image
    assert (cut_as_mesonet(np.full((60, width, 3), 90, np.uint8), np.float32([-50, 10, -20, 40]), points, 64) == 90).all()
scorer = MediaScorer([frames, clips], **options)
for path in sorted(Path(sys.argv[1]).iterdir()):
    faulthandler.dump_traceback_later(60, exit=True)
    start = time.perf_counter()
    verdict = scorer.score(path)
    print(json.dumps([path.name, time.perf_counter() - start, verdict.as_dict()]), flush=True)
"""
    said = [json.loads(line) for line in in_child(script, tmp_path).stdout.splitlines()]
    assert [name for name, _, _ in said] == sorted(os.listdir(tmp_path)) and len(said) == 150
    slowest = max(said, key=lambda one: one[1])
    assert slowest[1] < LIMIT_S, slowest
    for name, _, verdict in said:
        assert verdict["reason"] and "fault of this program" not in verdict["reason"], verdict
        assert verdict["verdict"] == "abstain", "nothing is calibrated here"
        assert (verdict["score"] is None) != ("Not calibrated" in verdict["reason"]), name
    scored = {verdict["score"] is not None for _, _, verdict in said}
    assert len(scored) > 1, "damage of one bit leaves some files whole enough, and others not"


def test_a_stream_that_was_not_announced_does_not_end_the_video(tmp_path):
    images = [np.full((64, 64, 3), 20 * place, np.uint8) for place in range(10)]
    first, second = (
        encode(tmp_path / name, images, codec="mpeg2video", container_options=options).read_bytes()
        for name, options in (
            ("a.ts", {"mpegts_start_pid": "256"}),
            ("b.ts", {"mpegts_start_pid": "512", "mpegts_pmt_start_pid": "3512"}),
        )
    )
    (tmp_path / "both.ts").write_bytes(100 * first + second + 5 * first)
    stream = read_frames(tmp_path / "both.ts")
    assert sum(1 for _ in stream) > 800 and stream.damage


def test_whatever_a_decoder_raises_makes_a_damaged_picture(whole, monkeypatch):
    """Pillow's AVIF decoder raises RuntimeError over damaged colour planes."""
    (picture,) = (file for file in whole if file.name == "picture.png")

    def fail(*_):
        raise RuntimeError("Decoding of color planes failed")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
    with pytest.raises(UnreadableMedia, match=r"cut or damaged.*color planes"):
        read_image(picture)


# --- a folder of thousands of files -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_800_small_files_and_their_report_need_no_more_memory_than_200(tmp_path):
    """By a detector of a few operations: what is measured is everything around it."""
    rng, media = np.random.default_rng(0), tmp_path / "media"
    media.mkdir()
    face = cv2.resize(render_video(random_identity(3), "studio", 1, size=128, seed=0).images[0], (64, 64))
    for number in range(800):
        image = np.clip(face + rng.integers(-20, 20, 3), 0, 255).astype(np.uint8)
        cv2.imwrite(str(media / f"{number:04d}.png"), image)
    script = """
scorer, memory, count = MediaScorer(frames, **options | {"face_detector": Everywhere()}), {}, 0
with ReportWriter(sys.argv[2]) as report:
    for verdict in Verdicts(scorer, [sys.argv[1]]):
        report.add(verdict, [], scorer)
        count += 1
        if count in (200, 800):
            memory[count] = resident()
        last = verdict
print(json.dumps([count, memory[200], memory[800], last.score]))
"""
    count, early, late, score = json.loads(in_child(script, media, tmp_path / "report").stdout)
    assert count == 800 and score is not None
    assert late - early < 8, f"{early:.0f} MB after 200 files, {late:.0f} MB after 800"
    index = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "800 files." in index and index.count("<li ") == 800
    assert len(list((tmp_path / "report").iterdir())) == 801


# --- hostile file names -----------------------------------------------------------------------------------------------

NAMES = ["<img src=x onerror=alert(1)>.png", "a&amp;\"'b.png", "line\nbreak.png", "tab\tand\x1b[31mred.png", "=1+1,2;\"3.png",
         "\u202egnp.exe.png", "{{ 7 * 7 }}{% raw %}.png", "[red]bold `code` | *star*.png", "é" * 120 + ".png"]  # fmt: skip


class Words(HTMLParser):
    """The tags of a page, and all of its text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self.attributes = set(), "", set()
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def scored_names(tmp_path_factory):
    """Files of such names, scored from the command line: the folder of all that was written, and the terminal's text."""
    folder = tmp_path_factory.mktemp("names")
    (folder / "media").mkdir()
    content = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    for name in NAMES:
        (folder / "media" / name).write_bytes(content)
    scorer = MediaScorer(
        Detector("light", lambda weights: Ready(Light(), "none", "nothing")), calibration=False
    )
    files = {"--json": folder / "a.json", "--csv": folder / "a.csv", "--report": folder / "report"}
    arguments = ["score", folder / "media", *itertools.chain(*files.items())]
    shown = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(shown):
        patch.setattr(score, "open_scorer", lambda *_, **__: scorer)
        assert status_of(*arguments) == 3, "there is no face in any of them"
    return folder, shown.getvalue()


def test_names_are_text_on_every_page(scored_names):
    folder, _ = scored_names
    pages = sorted((folder / "report").glob("*.html"))
    assert len(pages) == len(NAMES) + 1
    for page in pages:
        assert re.fullmatch(r"[a-z0-9-]{1,60}\.html", page.name)
        words = Words(page.read_text(encoding="utf-8"))
        assert not words.tags & {"script", "iframe", "object", "embed", "form"}
        assert not [name for name in words.attributes if name.startswith("on")]
        assert not set("\u202e\x1b\t") & set(words.text)
    index = Words((folder / "report" / "index.html").read_text(encoding="utf-8")).text
    for name in ("<img src=x onerror=alert(1)>.png", "a&amp;\"'b.png", "line\\nbreak.png", "\\u202egnp.exe.png",
                 "{{ 7 * 7 }}{% raw %}.png", "é" * 120 + ".png", "tab\\tand\\x1b[31mred.png"):  # fmt: skip
        assert name in index, name


def test_names_are_whole_in_csv_and_json(scored_names):
    folder, _ = scored_names
    with open(folder / "a.csv", encoding="utf-8", newline="") as file:
        in_csv = {Path(row["path"]).name for row in csv.DictReader(file)}
    in_json = {
        Path(record["path"]).name for record in json.loads((folder / "a.json").read_text(encoding="utf-8"))
    }
    assert in_csv == in_json == set(NAMES)


def test_names_neither_break_lines_nor_colour_the_terminal(scored_names):
    _, shown = scored_names
    for name in ("<img src=x onerror=alert(1)>.png", "line\\nbreak.png", "\\x1b[31mred", "\\u202egnp.exe.png",
                 "[red]bold `code` | *star*.png"):  # fmt: skip
        assert name in shown, name
    assert not set("\u202e\x1b") & set(shown)
    assert sum(line.startswith("abstain") for line in shown.splitlines()) == len(NAMES)


def test_names_are_text_in_the_tables_of_the_documentation(scored_names):
    """Executed notebooks show tables by pandas, and Sphinx takes their HTML as it is."""
    folder, _ = scored_names
    table = pd.read_csv(folder / "a.csv")
    words = Words(table.assign(path=table.path.map(os.path.basename))[["path", "verdict"]]._repr_html_())
    assert words.tags <= {"div", "style", "table", "thead", "tbody", "tr", "th", "td"}
    assert "<img src=x onerror=alert(1)>.png" in words.text and not [
        name for name in words.attributes if name.startswith("on")
    ]

"""Report pages of real verdicts: complete without a network, true to the verdict, readable on a phone."""

import base64
import html
import os
import re
import shutil
import subprocess
from dataclasses import replace

import cv2
import numpy as np
import pytest
from layouts import WhiteSquares, made_calibration
from torch import nn

from deepfake_nb.evaluation.explain import measure_restoring
from deepfake_nb.media.faces import align_clip
from deepfake_nb.media.video import write_video
from deepfake_nb.networks.weights import Whereabouts
from deepfake_nb.people.heads import random_identity
from deepfake_nb.people.rendering import render_stills, render_video
from deepfake_nb.people.swapping import SourceFace, swap_video
from deepfake_nb.scoring import report as report_module
from deepfake_nb.scoring import score as score_module
from deepfake_nb.scoring.report import (
    MOST_HEATMAPS,
    ReportWriter,
    gather_evidence,
    name_page,
    smooth_saliency,
)
from deepfake_nb.scoring.score import (
    KeptView,
    MediaScorer,
)
from deepfake_nb.scoring.verdict import FaceScore, ReasonCode, Verdict, advise, format_percent
from deepfake_nb.scoring.views import ClipDetector, Detector, Ready
from deepfake_nb.study.files import InputError, sha256_of


class Light(nn.Module):
    """Fake is what is bright in the left half."""

    def forward(self, faces):
        return 10 * (faces[..., : faces.shape[-1] // 2].flatten(1).mean(1) - 0.5)


def light(weights=None):
    return Ready(Light(), "light.bin", "nothing at all", sha256="ab" * 32)


@pytest.fixture(scope="module")
def ensemble():
    frames = Detector("frames", light, input_size=64)
    clips = ClipDetector("clips", light, input_size=64, clip_length=8, step=8)
    weights = dict.fromkeys(("clips", "frames"), "ab" * 32)
    calibration = made_calibration("clips", "frames", kind="video", weights=weights)
    return MediaScorer([clips, frames], device="cpu", face_detector=WhiteSquares(), calibration=calibration)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Two bright patches; the left one is white from 0.6 s to 2 s."""
    frames = []
    for number in range(60):
        image = np.zeros((120, 320, 3), np.uint8)
        image[20:84, 20:84] = 240 if 15 <= number < 50 else 110
        image[20:84, 180:244] = 100
        frames.append(image)
    return write_video(tmp_path_factory.mktemp("video") / "two people.mp4", frames, 25)


@pytest.fixture(scope="module")
def page(ensemble, video, tmp_path_factory):
    """The page on that video."""
    with ReportWriter(tmp_path_factory.mktemp("report")) as report:
        return report.add(*ensemble.examine(video), ensemble)


def pictures_in(text):
    """The images of a page, decoded."""
    found = re.findall(r'<img [^>]*?src="data:image/(?:jpeg|png);base64,([^"]+)"', text)
    return [
        cv2.imdecode(np.frombuffer(base64.b64decode(one), np.uint8), cv2.IMREAD_COLOR_RGB) for one in found
    ]


def test_a_page_says_what_the_verdict_says(page, ensemble, video):
    text, verdict = page.read_text(encoding="utf-8"), ensemble.score(video)
    assert verdict.verdict == "fake" and "Looks forged" in text
    assert (
        f"Probability of a forgery: {format_percent(verdict.probability)}" in text
        and "99 of them fake: made numbers" in text
    )
    for person in verdict.faces:
        assert f"<h2>Person {person.track + 1}</h2>" in text
        probability = f"probability of a forgery {html.escape(format_percent(person.probability))}"
        assert f"Score {person.score:.2f}, {probability}, from {person.n_frames} frames." in text
    (stretch,) = verdict.faces[0].suspicious
    assert stretch["start_s"] == pytest.approx(0.6, abs=0.4) and stretch["end_s"] == pytest.approx(2, abs=0.4)
    assert text.count('class="suspect"') == 1 and text.count("Trained on: nothing at all.") == 2
    assert sha256_of(video) in text and "ab" * 32 in text and "clip length 8" in text


def test_a_page_is_complete_in_itself(page):
    text = page.read_text(encoding="utf-8")
    pictures = pictures_in(text)
    assert len(pictures) == text.count("<img ") and all(picture is not None for picture in pictures)
    assert not re.search(r"<script|<link rel=\"style|https?:|@import|url\(|\ssrcset=|\son\w+=", text)
    assert set(re.findall(r'href="([^"]*)"', text)) == {"index.html", "#person-1", "data:,"}
    assert all(f'<meta name="{name}"' in text for name in ("viewport", "color-scheme"))


def test_a_face_has_its_picture_and_its_heatmap(page):
    """White in the image, and brighter in the left half of the map, by which alone the network goes."""
    text = page.read_text(encoding="utf-8")
    assert "most of it lies in the" in text and "left." in text
    for found in re.finditer(r'<img src="[^"]+" alt="Heatmap[^"]+"', text):
        (picture,) = pictures_in(found[0])
        colourful = np.ptp(picture.astype(int), axis=2)
        assert colourful[:, :28].mean() > 3 * colourful[:, 36:].mean() + 3


def test_a_file_named_twice_gets_two_pages_and_a_second_run_replaces_them(ensemble, tmp_path):
    verdict = ensemble.abstain("absent.png", "There is no file.")
    for _ in range(2):
        with ReportWriter(tmp_path / "r") as report:
            pages = [report.add(verdict, [], ensemble) for _ in range(2)]
        assert len(set(pages)) == 2
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == sorted(
        ["index.html", *(p.name for p in pages)]
    )
    index = (tmp_path / "r" / "index.html").read_text()
    assert "2 files. No verdict: 2." in index and all(page.name in index for page in pages)


def test_the_index_begins_with_the_most_suspicious(ensemble, tmp_path):
    nothing = ensemble.abstain("none.png", "There is no file.")
    said = {
        "likely.png": ("fake", 0.8, 0.7),
        "real.png": ("real", 0.1, 0.2),
        "surely.png": ("fake", 0.7, 0.9),
    }
    said |= {"strange.png": ("abstain", 0.99, None)}
    with ReportWriter(tmp_path) as report:
        report.add(nothing, [], ensemble)
        for path, (word, score, probability) in said.items():
            about = {"score": score, "probability": probability, "threshold": 0.5}
            report.add(replace(nothing, path=path, verdict=word, **about), [], ensemble)
    index = (tmp_path / "index.html").read_text()
    order = ["surely.png", "likely.png", "strange.png", "real.png", "none.png"]
    assert re.findall(r"<bdi>([^<]*)</bdi>", index) == order
    assert "The most suspicious come first." in index


def test_names_that_differ_in_case_or_in_bytes_do_not_share_a_page():
    names = [
        "a.mp4",
        "A.mp4",
        "a .mp4",
        "x/a.mp4",
        "ä.mp4",
        "a\u0308.mp4",
        "\udcff.mp4",
        "\udcfe.mp4",
        "a.mp4\n",
    ]
    assert len({name_page(name).lower() for name in names}) == len(names)
    assert all(len(name_page("x" * length)) <= 60 for length in (1, 255, 4000))


def test_what_was_done_before_an_interruption_is_in_the_index(ensemble, tmp_path):
    with pytest.raises(KeyboardInterrupt), ReportWriter(tmp_path) as report:
        report.add(ensemble.abstain("first.png", "There is no file."), [], ensemble)
        raise KeyboardInterrupt
    index = (tmp_path / "index.html").read_text()
    assert "first.png" in index and "The run was broken off" in index
    with ReportWriter(tmp_path) as report:
        report.add(ensemble.abstain("first.png", "There is no file."), [], ensemble)
    assert "broken off" not in (tmp_path / "index.html").read_text()


def test_a_folder_that_cannot_be_made_is_refused(ensemble, tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(InputError, match="taken"):
        ReportWriter(tmp_path / "taken")
    with ReportWriter(tmp_path / "gone") as report:
        shutil.rmtree(tmp_path / "gone")
        (tmp_path / "gone").write_text("a file")
        with pytest.raises(InputError, match="gone"):
            report.add(ensemble.abstain("a.png", "There is no file."), [], ensemble)
        (tmp_path / "gone").unlink()


def test_a_file_that_may_not_be_read_has_a_page_too(ensemble, tmp_path, monkeypatch):
    """The others of its folder would go without."""
    locked = tmp_path / "locked.png"
    locked.write_bytes(b"content")

    def refuse(path):
        raise PermissionError(13, "Permission denied", os.fspath(path))

    monkeypatch.setattr(report_module, "sha256_of", refuse)
    with ReportWriter(tmp_path / "r") as report:
        text = report.add(ensemble.abstain(locked, "No permission to read it."), [], ensemble).read_text()
    assert "<dd>unknown</dd>" in text and "None" not in text


def person(track, score, **more):
    return FaceScore(
        track, 9, score, [{"time_s": t / 5, "score": score} for t in range(9)], {"frames": score}, **more
    )


def test_commands_in_advice_are_code_and_the_rest_is_text(ensemble, tmp_path):
    reason = "Unlike anything the calibration saw. The calibration was fitted on <b>drawings</b>."
    with ReportWriter(tmp_path) as report:
        text = report.add(
            ensemble.abstain("a.png", reason, ReasonCode.OUT_OF_DISTRIBUTION), [], ensemble
        ).read_text()
    assert "<code>deepfake-nb weights list</code>" in text and "`" not in text and "<b>" not in text


def test_who_decides_is_named_and_who_has_no_score_is_counted(ensemble, tmp_path):
    faces = [
        person(0, 0.2, threshold=0.5),
        person(1, 0.9, threshold=0.5),
        *(FaceScore(t, 0, None, []) for t in range(2, 9)),
    ]
    verdict = Verdict("crowd.mp4", "fake", 0.9, None, None, "It is.", "frames", "w", "t", faces, "video", 0.5)
    with ReportWriter(tmp_path) as report:
        text = report.add(verdict, [], ensemble).read_text()
        alone = report.add(Verdict(**vars(verdict) | {"faces": faces[1:2]}), [], ensemble).read_text()
    assert (
        'The verdict is about <a href="#person-2">person 2</a>, one of 9 people' in text
        and 'id="person-2"' in text
    )
    assert "7 more were visible too briefly" in text and text.count("<h2>Person") == 2
    assert "The verdict is about" not in alone


def test_a_suspicious_stretch_stays_within_its_drawing():
    for stretch in ((0, 2), (1.9, 2.4), (2.0, 2.2), (0, 0.001)):
        start, width = report_module.place_band(dict(zip(("start_s", "end_s"), stretch, strict=True)), 0, 2)
        assert 0 <= start and width >= 4 and start + width <= 1000, stretch


def test_an_interval_that_rounding_swallows_is_left_out(ensemble):
    verdict = ensemble.abstain("a.mp4", "It is.")
    verdict.probability, verdict.interval = 0.9996, [0.997, 0.9999]
    assert report_module.lay_out_gauge(verdict)["words"] == "Probability of a forgery: >99\u00a0%"
    verdict.interval = [0.91, 0.9999]
    assert "91\u00a0% to >99\u00a0%" in report_module.lay_out_gauge(verdict)["words"]


def test_a_heatmap_that_fails_leaves_a_page_without_it(ensemble, video, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no\nmemory <left>")

    monkeypatch.setattr(report_module, "smooth_saliency", fail)
    with ReportWriter(tmp_path) as report:
        text = report.add(*ensemble.examine(video), ensemble).read_text()
    assert "There is no heatmap: no" in text and "<left>" not in text and "Heatmap of" not in text
    assert "Looks forged" in text and "The face of person 1" in text


def test_a_crowd_gets_a_bounded_number_of_heatmaps(ensemble):
    crop = np.full((64, 64, 3), 200, np.uint8)
    kept = [KeptView("frames", track, 0.0, track / 40, crop) for track in range(40)]
    pieces = gather_evidence(kept, ensemble)
    assert len(pieces) == 40 and [piece["view"].track for piece in pieces[:2]] == [39, 38]
    assert [piece["map"] is not None for piece in pieces] == [number < MOST_HEATMAPS for number in range(40)]


def test_a_person_without_a_score_and_one_without_a_view_are_there(ensemble, tmp_path):
    faces = [
        FaceScore(0, 2, None, [{"time_s": 0.0, "score": None}, {"time_s": 0.04, "score": None}]),
        FaceScore(1, 0, None, []),
    ]
    verdict = Verdict(
        "a.mp4", "abstain", None, None, None, "Too few frames: 2.", "frames", "w", "t", faces, kind="video",
        advice=advise(ReasonCode.TOO_FEW_FRAMES),
    )  # fmt: skip
    with ReportWriter(tmp_path) as report:
        text = report.add(verdict, [], ensemble).read_text()
    assert text.count("No score: this person was visible too briefly.") == 2 and "A longer piece" in text
    assert "<svg" not in text


def test_what_would_help_is_known_for_all_that_can_be_helped():
    helpless = {code for code in ReasonCode if not advise(code)}
    assert helpless == {ReasonCode.UNDEFINED_SCORE, ReasonCode.UNREADABLE, ReasonCode.FAULT}
    assert all(advise(code).endswith(".") for code in set(ReasonCode) - helpless)


def test_abstentions_have_codes_and_advice(ensemble, tmp_path):
    small = np.zeros((64, 64, 3), np.uint8)
    small[10:40, 10:40] = 200
    cv2.imwrite(str(tmp_path / "small.png"), small)
    write_video(tmp_path / "nobody.mp4", [0 * small] * 9, 25)
    only_clips = MediaScorer(
        ensemble.detectors[0].detector, device="cpu", face_detector=WhiteSquares(), calibration=False
    )
    cv2.imwrite(
        str(tmp_path / "large.png"), np.pad(np.full((64, 64, 3), 200, np.uint8), ((30, 30), (30, 30), (0, 0)))
    )
    found = [ensemble.score(tmp_path / name) for name in ("small.png", "nobody.mp4", "large.png")]
    found += [only_clips.score(tmp_path / "small.png"), ensemble.score(tmp_path / "absent.png")]
    codes = ["face_too_small", "no_face", "not_calibrated", "needs_video", "unreadable"]
    assert [verdict.reason_code for verdict in found] == codes
    assert [verdict.advice for verdict in found] == [advise(code) for code in codes]
    assert [bool(verdict.footnote) for verdict in found] == [code == "not_calibrated" for code in codes]
    assert all(verdict.reason == f"{verdict.own_reason} {verdict.footnote}".strip() for verdict in found)


# --- tasks, two thresholds, and no calibration --------------------------------------------------------------------


def judged(ensemble, tmp_path, word, faces, **said):
    """The page on a made verdict, and the index."""
    footnote = "0.61 and above is called fake: that is so."
    nothing = ensemble.abstain(
        "a.mp4", f"{said.pop('reason', '')} {footnote}".lstrip(), said.pop("code", None)
    )
    nothing.footnote = footnote
    about = {"score": faces[0].score, "kind": "video", "calibration": "60 drawn people", "faces": faces}
    with ReportWriter(tmp_path / "r") as report:
        page = report.add(replace(nothing, verdict=word, **about | said), [], ensemble).read_text(
            encoding="utf-8"
        )
    return page, (tmp_path / "r" / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "task, words", [("edited", "an edited face"), ("generated", "a generated face"), (None, "a forgery")]
)
def test_what_was_looked_for_is_said_in_plain_words(ensemble, tmp_path, task, words):
    faces = [person(0, 0.9, threshold=0.61, real_below=0.42, task=task, probability=0.83)]
    said = {"task": task, "probability": 0.83, "interval": [0.6, 0.9], "threshold": 0.61, "real_below": 0.42}
    page, index = judged(ensemble, tmp_path, "fake", faces, false_alarm_rate=0.05, **said)
    assert f"Probability of {words}: 83\u00a0%" in page and f"Probability of {words}: 83\u00a0%" in index
    assert f"probability of {words} 83\u00a0%" in page
    assert (f"It looks like <strong>{words}</strong>" in page) == (task is not None)


def test_the_undecided_zone_lies_between_two_lines(ensemble, tmp_path):
    faces = [person(0, 0.55, threshold=0.61, real_below=0.42, task="edited", probability=0.5)]
    reason = "Undecided: its score of 0.55 lies between."
    said = {"reason": reason, "code": ReasonCode.UNDECIDED, "threshold": 0.61, "real_below": 0.42}
    page, index = judged(ensemble, tmp_path, "abstain", faces, **said)
    places = [float(place) for place in re.findall(r'class="limit" x1="0" x2="1000" y1="([\d.]+)"', page)]
    assert places == pytest.approx([39, 58]) and "between them nothing is decided" in page
    assert "Undecided: its score" in index and "0.61 and above" in page and "0.61 and above" not in index
    assert "may tell more" in page and "Nobody has measured" not in page
    alone = [replace(faces[0], real_below=0.61)]
    page, _ = judged(
        ensemble, tmp_path, "real", alone, threshold=0.61, real_below=0.61, false_alarm_rate=0.05
    )
    assert page.count('class="limit" x1="0"') == 1 and "The dashed line is the threshold." in page


def test_a_score_without_a_calibration_is_shown_with_the_reason(ensemble, video, tmp_path):
    bare = MediaScorer(
        [loaded.detector for loaded in ensemble.detectors],
        device="cpu",
        face_detector=WhiteSquares(),
        calibration=False,
    )
    verdict, kept = bare.examine(video, keep=0)
    with ReportWriter(tmp_path) as report:
        page = report.add(verdict, kept, bare).read_text(encoding="utf-8")
    index = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert verdict.verdict == "abstain" and "No verdict" in page and "Looks forged" not in page
    assert f"Score: {verdict.score:.2f}. It is not a probability." in page
    assert "Not calibrated: the score is no probability" in page and "Not calibrated: the score" in index
    assert "<code>deepfake-nb calibrate</code>" in page and page.count("Not calibrated") == 1


@pytest.mark.parametrize(
    "name, is_there, hints", [("small-faces", False, 1), ("small-faces", True, 0), ("frames", False, 0)]
)
def test_after_the_small_network_the_page_ends_with_what_is_better(
    ensemble, tmp_path, monkeypatch, name, is_there, hints
):
    monkeypatch.setattr(score_module, "locate_weights", lambda _: Whereabouts("cache", is_there))
    own = {
        "name": name,
        "score": 0.9,
        "probability": None,
        "weights": "w",
        "sha256": None,
        "trained_on": "people",
    }
    monkeypatch.setattr(type(ensemble), "find_detector", lambda self, _: ensemble.detectors[1])
    page, _ = judged(ensemble, tmp_path, "fake", [person(0, 0.9, threshold=0.5)], detectors=[own])
    assert page.count("<code>deepfake-nb weights fetch clip-vit-b16</code> (78 MB, once)") == hints
    unscored, _ = judged(
        ensemble, tmp_path, "abstain", [FaceScore(0, 0, None, [])], detectors=[own | {"score": None}]
    )
    assert "weights fetch" not in unscored


@pytest.mark.slow
def test_the_heatmap_of_a_clip_shows_what_its_score_depends_on():
    """Putting back what is bright in the map takes "fake" away; putting back as much of what is dark does not."""
    film = render_video(random_identity(9001), "studio", 16, size=160, seed=1)
    still = render_stills([random_identity(9501)], "studio", size=160, seed=1)
    source = SourceFace(still.images[0], still.landmarks[0])
    swapped = swap_video(film.images, film.landmarks, source, quality="crude", rng=np.random.default_rng(1))
    both = [[frame for frame, _ in swapped], film.images]
    (loaded,) = MediaScorer("rendered-clips", device="cpu", calibration=False).detectors
    size = loaded.detector.input_size
    clips = np.stack([align_clip(images, film.boxes, film.landmarks, size)[0] for images in both])
    forged, original = loaded.detector.prepare(clips)[:, None]
    (map,) = smooth_saliency(loaded.network, forged)
    bright, dark = map >= np.quantile(map, 0.8), map <= np.quantile(map, 0.2)
    masks = [np.broadcast_to(part, (1, 16, size, size)) for part in (bright, dark)]
    bright, dark = (measure_restoring(loaded.network, forged, original, mask) for mask in masks)
    assert bright.whole[0] > 2, "the detector takes it for a forgery, and the original not"
    assert bright.effect[0] > 0.6 * bright.whole[0] and abs(dark.effect[0]) < 0.2 * bright.whole[0]


# --- in a browser -------------------------------------------------------------------------------------------------

MEASURE = """<body><iframe width="{width}" height="900" srcdoc="{page}"></iframe><script>onload = () => {{
  const view = document.querySelector("iframe").contentWindow, page = view.document;
  const outside = [...page.querySelectorAll("body *")].filter(e => e.getBoundingClientRect().right > view.innerWidth + 1);
  document.title = [page.documentElement.scrollWidth, [...page.images].every(i => i.naturalWidth > 0),
    ...outside.map(e => e.outerHTML.slice(0, 80))].join("|") }}</script></body>"""


@pytest.mark.parametrize("width", [390, 1200])
def test_nothing_sticks_out_on_a_phone_or_at_a_desk(page, ensemble, tmp_path, width):
    """Each page is measured in Chromium, in a frame as wide as the screen."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs Chromium to look at pages")
    with ReportWriter(tmp_path) as report:
        report.add(ensemble.abstain("x" * 250 + ".png", "It cannot be read: " + "y" * 300), [], ensemble)
    for name in (page, tmp_path / "index.html"):
        inner = html.escape(re.sub("<meta http-equiv[^>]+>", "", name.read_text(encoding="utf-8")))
        (tmp_path / "measure.html").write_text(MEASURE.format(width=width, page=inner), encoding="utf-8")
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
                   f"--window-size={width + 100},1000", "--dump-dom", f"file://{tmp_path / 'measure.html'}"]  # fmt: skip
        shown = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
        needed, loaded, *outside = re.search("<title>(.*?)</title>", shown, re.S)[1].split("|")
        assert loaded == "true" and not outside and int(needed) <= width, (name.name, needed, outside)

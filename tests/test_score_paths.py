"""Names, folders and patterns of any kind, thousands of files, and the files that verdicts are written to."""

import csv
import json
import os
import tracemalloc
from pathlib import Path

import pytest
from scoring import assert_contract, patches, save, score_with

from deepfake_nb.media.video import write_video
from deepfake_nb.scoring.score import write_verdicts
from deepfake_nb.scoring.views import Sampling, find_media


@pytest.mark.parametrize(
    "name", ["ein Bild mit Lücken.png", "Жанна/лицо.png", "顔.png", "a'b\"c<d>&.png", "new\nline.png"]
)
def test_file_names_of_all_kinds(quick, tmp_path, name):
    save(tmp_path / name, patches(200))
    verdicts = list(score_with(quick, tmp_path))
    write_verdicts(verdicts, tmp_path / "out.json", tmp_path / "out.csv")
    assert verdicts[0].score is not None
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))[0]["path"] == str(tmp_path / name)
    with open(tmp_path / "out.csv", encoding="utf-8", newline="") as file:
        assert next(csv.DictReader(file))["path"] == str(tmp_path / name)


def test_a_file_name_that_is_no_unicode(quick, tmp_path):
    odd = os.fsencode(tmp_path) + b"/\xff.png"
    try:
        with open(odd, "wb") as file:
            file.write(save(tmp_path / "a.png", patches(200)).read_bytes())
    except OSError:
        pytest.skip("this file system takes no names that are not Unicode")
    write_verdicts(score_with(quick, tmp_path), tmp_path / "out.json", tmp_path / "out.csv")
    records = json.loads((tmp_path / "out.json").read_text())
    assert [record["score"] is not None for record in records] == [True, True]


def test_a_folder_that_may_not_be_read_is_named_and_the_rest_goes_on(quick, tmp_path, monkeypatch):
    for folder in ("a", "locked", "z"):
        save(tmp_path / folder / "face.png", patches(200))
    scandir = os.scandir

    def guarded(path="."):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    verdicts = {verdict.path: verdict for verdict in score_with(quick, tmp_path)}
    names = sorted(Path(path).relative_to(tmp_path).as_posix() for path in verdicts)
    assert names == ["a/face.png", "locked", "z/face.png"]
    locked = verdicts[str(tmp_path / "locked")]
    assert_contract(locked)
    assert locked.verdict == "abstain" and "Permission denied" in locked.reason
    (alone,) = score_with(quick, tmp_path / "locked")
    assert "Permission denied" in alone.reason and "no image or video" not in alone.reason


def test_paths_that_are_not_there(quick, tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    paths = [tmp_path / "absent.mp4", tmp_path / "notes.txt", tmp_path / "*.mp4", tmp_path]
    reasons = [verdict.reason for verdict in score_with(quick, *paths)]
    expected = [
        "There is no file",
        "neither an image nor a video",
        "matches this pattern",
        "no image or video in this",
    ]
    assert len(reasons) == 4
    assert all(words in reason for words, reason in zip(expected, reasons, strict=True)), reasons


def test_a_broken_link_and_a_loop_of_folders(quick, tmp_path):
    save(tmp_path / "face.png", patches(200))
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "gone.jpg")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    words = [(Path(verdict.path).name, verdict.verdict) for verdict in score_with(quick, tmp_path)]
    assert words == [("dangling.jpg", "abstain"), ("face.png", "fake")]


def test_brackets_in_a_file_name_are_no_pattern(tmp_path):
    save(tmp_path / "clip[1].png", patches(200))
    assert [source.problem for source in find_media([tmp_path / "clip[1].png"])] == [None]


def test_files_are_read_as_verdicts_are_taken(quick, tmp_path):
    for number in range(3):
        save(tmp_path / f"{number}.png", patches(200))
    verdicts = score_with(quick, tmp_path)
    next(verdicts)
    (tmp_path / "1.png").unlink()
    assert [verdict.verdict for verdict in verdicts] == ["abstain", "fake"]


def test_memory_does_not_grow_with_the_number_of_files(quick, tmp_path):
    save(tmp_path / "face.png", patches(200))
    for number in range(150):
        os.link(tmp_path / "face.png", tmp_path / f"{number:03}.png")
    verdicts, held = score_with(quick, tmp_path), []
    tracemalloc.start()
    for number, _ in enumerate(verdicts):
        if number in (30, 140):
            held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert held[1] - held[0] < 100_000, held


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length_of_a_video(quick, tmp_path):
    peaks = []
    for seconds in (20, 60):
        write_video(tmp_path / "long.mp4", (patches(200) for _ in range(25 * seconds)), 25)
        tracemalloc.start()
        assert quick.score(tmp_path / "long.mp4").faces[0].n_frames == 5 * seconds
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 3_000_000, peaks


def test_a_long_film_is_looked_at_less_often():
    assert Sampling().stride(25, 25 * 3600 * 2) == 300
    assert Sampling(most=100).stride(30, 3000) == 30
    assert Sampling().stride(None, None) == 5


def test_files_of_verdicts_appear_whole_or_not_at_all(quick, tmp_path):
    def broken():
        yield quick.score(save(tmp_path / "face.png", patches(200)))
        raise RuntimeError("the power fails")

    with pytest.raises(RuntimeError):
        write_verdicts(broken(), tmp_path / "v.json", tmp_path / "v.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["face.png"]
    write_verdicts([], tmp_path / "v.json")
    assert json.loads((tmp_path / "v.json").read_text()) == []

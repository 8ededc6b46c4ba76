"""Links, names, terminals, pipes, interrupted runs, addresses, cut images, and machines of other kinds."""

import builtins
import csv
import io
import json
import os
import re
import sys

import numpy as np
import pytest
import torch
from commands import status_of
from layouts import WhiteSquares, quarters
from PIL import Image
from scoring import Brightness, detector_of, patches, save, score_with, textured

from deepfake_nb import cli
from deepfake_nb.data import builds
from deepfake_nb.data.builds import build
from deepfake_nb.media.video import UnreadableMedia, image_damage, read_image
from deepfake_nb.scoring.camera import Camera
from deepfake_nb.scoring.fit_calibration import find_labelled_media, gather
from deepfake_nb.scoring.score import DETECTORS, MediaScorer, VerdictFiles, read_verdicts
from deepfake_nb.scoring.views import find_media
from deepfake_nb.study import files, records
from deepfake_nb.study.files import InputError, explain_absence

ODD = os.fsdecode(b"caf\xe9.png")


def save_odd(folder, image):
    """An image whose name is no UTF-8."""
    content = save(folder / "plain.png", image).read_bytes()
    try:
        (folder / ODD).write_bytes(content)
    except OSError:
        pytest.skip("this file system takes no names that are not UTF-8")
    (folder / "plain.png").unlink()
    return folder / ODD


@pytest.fixture
def quick_build(monkeypatch):
    """Builds for which a white patch is a face."""
    monkeypatch.setattr(builds, "_detector", lambda *_: WhiteSquares())


def test_a_linked_folder_is_scored_and_calibrated_on_once(tmp_path):
    save(tmp_path / "disk" / "ann" / "1.png", patches(200))
    save(tmp_path / "mine" / "fake" / "ben" / "2.png", patches(90))
    (tmp_path / "mine" / "real").mkdir()
    for link, target in {"real/more": "disk", "fake/again": "mine/fake/ben", "real/up": "mine"}.items():
        (tmp_path / "mine" / link).symlink_to(tmp_path / target, target_is_directory=True)
    found = [os.path.relpath(source.path, tmp_path) for source in find_media([tmp_path / "mine"])]
    assert found == ["mine/fake/ben/2.png", "mine/real/more/ann/1.png"]
    media = find_labelled_media(tmp_path / "mine")
    assert [os.path.relpath(path, tmp_path) for path in media.path] == found[::-1]


def test_names_that_are_no_utf8_are_told_by_build_and_calibrate(quick, quick_build, tmp_path):
    few, shown = tmp_path / "few", "real/caf\\xe9.png"
    for name in ("real/a.png", "fake/b.png"):
        save(few / name, patches(90))
    save_odd(few / "real", patches(90))
    table, left_out = gather(find_labelled_media(few), quick)
    assert len(table) == 2 and left_out == [
        (str(few / shown), "its name is no UTF-8 text. Rename it, with its folders")
    ]
    report = build("folder", few, tmp_path / "out")
    assert len(report.manifest) == 2
    assert shown in report.rejects.path.tolist()
    assert shown in (tmp_path / "out" / "rejected.csv").read_text()
    with pytest.raises(InputError, match=r"'.*caf\\xe9\.png' is no UTF-8 text"):
        build("folder", few, tmp_path / ODD)


def test_a_terminal_of_another_encoding_shows_every_name(
    with_test_detector, believed_file, tmp_path, monkeypatch
):
    save(tmp_path / "mine" / "é лицо 顔.png", patches(200))
    save_odd(tmp_path / "mine", patches(90))
    shown = io.TextIOWrapper(io.BytesIO(), "cp1252", write_through=True)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", shown)
        about = ("--detector", "test", "--calibration", believed_file, "--json", tmp_path / "v.json")
        assert status_of("score", tmp_path / "mine", *about) == 0
    text = shown.buffer.getvalue().decode("cp1252")
    assert r"é \u043b\u0438\u0446\u043e \u9854.png" in text and "Of 2 files" in text
    paths = [record["path"] for record in json.loads((tmp_path / "v.json").read_text(encoding="utf-8"))]
    assert [os.path.basename(path) for path in paths] == ["caf\\udce9.png", "é лицо 顔.png"]


@pytest.mark.timeout(60)
def test_pipes_and_devices_are_told_not_waited_for(quick, quick_build, tmp_path, capsys):
    for name in ("real/a.png", "fake/b.png"):
        save(tmp_path / "mine" / name, patches(90))
    os.mkfifo(tmp_path / "mine" / "real" / "pipe.mp4")
    (tmp_path / "mine" / "fake" / "zero.png").symlink_to("/dev/zero")
    rejects = build("folder", tmp_path / "mine", tmp_path / "out").rejects.set_index("path").reason
    assert all("not an ordinary file" in rejects[name] for name in ("real/pipe.mp4", "fake/zero.png"))
    verdicts = {os.path.basename(v.path): v.reason for v in score_with(quick, tmp_path / "mine")}
    assert all("not an ordinary file" in verdicts[name] for name in ("pipe.mp4", "zero.png"))
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    score = ("score", tmp_path / "mine", "--detector", "small-faces")
    for arguments in (("evaluate", pipe), ("weights", "check", pipe), (*score, "--weights", pipe),
                      (*score, "--calibration", pipe)):  # fmt: skip
        assert status_of(*arguments) == 3 and "Error: " in capsys.readouterr().err
    with pytest.raises(InputError, match="not an ordinary file"):
        files.write_json("/dev/null", [])


def interrupted(count, examine=MediaScorer.examine):
    """`MediaScorer.examine`, and Ctrl-C while the file after the first `count` is looked at."""
    left = [None] * count

    def look(scorer, path, keep=3):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return examine(scorer, path, keep)

    return look


@pytest.fixture
def folder_of_patches(tmp_path):
    for number in range(5):
        save(tmp_path / "mine" / f"{number}.png", patches(60 + 40 * number))
    return tmp_path / "mine"


@pytest.mark.parametrize("kinds", [("json", "csv"), ("json",), ("csv",)])
def test_ctrl_c_keeps_what_is_done_and_resume_goes_on(
    with_test_detector, believed_file, folder_of_patches, tmp_path, monkeypatch, capsys, kinds
):
    def written(name):
        return {kind: tmp_path / f"{name}.{kind}" for kind in kinds}

    def score(name, *options, status=0):
        outputs = [word for kind, path in written(name).items() for word in (f"--{kind}", path)]
        about = ("--detector", "test", "--calibration", believed_file, *outputs, *options)
        assert status_of("score", folder_of_patches, *about) == status
        return capsys.readouterr()

    score("calm")
    with monkeypatch.context() as patch:
        patch.setattr(MediaScorer, "examine", interrupted(2))
        said = score("broken", status=130)
    assert "Interrupted" in said.err and "--resume goes on" in said.err
    if "json" in kinds:
        assert len(json.loads(written("broken")["json"].read_text())) == 2
    if "csv" in kinds:
        with open(written("broken")["csv"], newline="") as file:
            assert len([*csv.DictReader(file)]) == 2
    with monkeypatch.context() as patch:
        patch.setattr(MediaScorer, "examine", interrupted(3))  # no file is looked at again
        said = score("broken", "--resume")
    assert "Of 5 files" in said.out and said.out.count(".png") == 3
    for kind, path in written("broken").items():
        assert path.read_bytes() == written("calm")[kind].read_bytes()
    assert "Of 5 files" in score("broken", "--resume").out


def test_a_killed_run_leaves_whole_files_and_a_cut_verdict_is_dropped(quick, folder_of_patches, tmp_path):
    paths = {"json_file": tmp_path / "v.json", "csv_file": tmp_path / "v.csv"}
    unfinished = VerdictFiles(**paths)
    for count, verdict in enumerate(score_with(quick, folder_of_patches), 1):
        unfinished.add(verdict)
        assert len(json.loads(paths["json_file"].read_text())) == count
        assert len(read_verdicts(quick, csv_file=paths["csv_file"])) == count
    for path in paths.values():
        path.write_bytes(path.read_bytes()[:-9])
    assert len(read_verdicts(quick, **paths)) == len(read_verdicts(quick, csv_file=paths["csv_file"])) == 4
    assert read_verdicts(quick, tmp_path / "none.json") == []


def test_resume_refuses_what_it_cannot_go_on_with(quick, folder_of_patches, tmp_path, capsys):
    with VerdictFiles(tmp_path / "v.json") as written:
        written.add(next(score_with(quick, folder_of_patches)))
    other = MediaScorer([detector_of(Brightness())], device="cpu", calibration=False)
    other.detectors[0].detector = DETECTORS["small-faces"]
    with pytest.raises(InputError, match="holds verdicts of test"):
        read_verdicts(other, tmp_path / "v.json")
    (tmp_path / "notes.json").write_text('{"path": 1}')
    with pytest.raises(InputError, match="holds no verdicts"):
        read_verdicts(quick, tmp_path / "notes.json")
    for options in (
        ("--resume",),
        ("--resume", "--json", "v.json", "--report", "r"),
        ("--resume", "--camera", "0"),
    ):
        paths = () if "--camera" in options else (folder_of_patches,)
        assert (
            status_of("score", *paths, *options) == 2 and "--resume goes on with" in capsys.readouterr().err
        )


def test_a_full_disk_keeps_the_verdicts_before(quick, folder_of_patches, tmp_path, monkeypatch):
    written = VerdictFiles(tmp_path / "v.json")
    verdicts = score_with(quick, folder_of_patches)
    written.add(next(verdicts))
    small = written.json.file

    class Full:
        def __getattr__(self, name):
            return getattr(small, name)

        def write(self, content):
            return small.write(content[:100])

    written.json.file = Full()
    with pytest.raises(InputError, match=r"Cannot write .*No space left"):
        written.add(next(verdicts))
    assert len(json.loads((tmp_path / "v.json").read_text())) == 1


@pytest.mark.parametrize("number", ["99999999999999999999", "9" * 5000, "2147483648"])
def test_a_camera_beyond_any_number_is_told(number):
    with pytest.raises(InputError, match="There is no camera with a number of"):
        Camera(number)


def test_an_address_is_no_file(quick, tmp_path, capsys):
    address = "https://example.org/watch?v=1.mp4"
    (verdict,) = score_with(quick, address)
    assert "'https://example.org/watch?v=1.mp4' is an address, and files are needed" in verdict.reason
    for arguments in (("evaluate", "https://example.org/scores.csv"), ("score", "--camera", "rtsp://example.org/1"),
                      ("data", "build", "folder", "--root", "https://example.org", "--out", tmp_path / "o")):  # fmt: skip
        if arguments[0] != "score":
            assert (
                status_of(*arguments) == 3
                and "is an address, and files are needed" in capsys.readouterr().err
            )
    with pytest.raises(InputError, match="is an address"):
        Camera("rtsp://example.org/1")
    with pytest.raises(UnreadableMedia, match="is an address"):
        read_image("http://example.org/a.png")
    (tmp_path / "http:").mkdir()
    (tmp_path / "http:" / "a.png").write_bytes(b"")
    assert "is an address" not in explain_absence(tmp_path / "http:" / "a.png")


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_without_its_end_mark_is_read_with_a_remark(quick, tmp_path, progressive):
    image = textured(200, np.random.default_rng(0))
    whole = save(tmp_path / "whole.jpg", image, quality=90, progressive=progressive)
    content = whole.read_bytes()
    cut = tmp_path / "cut.jpg"
    for lost in (1, 2):
        cut.write_bytes(content[:-lost])
        assert np.array_equal(read_image(cut), read_image(whole)), lost
        verdict = quick.score(cut)
        assert verdict.score == quick.score(whole).score and "has no end mark" in verdict.reason
    cut.write_bytes(content + bytes(500))
    assert image_damage(cut) == image_damage(whole) == "" and "end mark" not in quick.score(whole).reason
    for share in (0.3, 0.7):
        cut.write_bytes(content[: int(share * len(content))] + bytes(200))
        with pytest.raises(UnreadableMedia, match="cut or damaged"):
            read_image(cut)


def test_the_lowest_rows_of_a_jpeg_may_be_missing(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (640, 64, 3), dtype=np.uint8)
    content = save(tmp_path / "whole.jpg", noise).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(content[: int(0.98 * len(content))])
    assert re.search(r"The lowest 2\.\d% of it is missing", image_damage(tmp_path / "cut.jpg"))
    assert read_image(tmp_path / "cut.jpg").shape == noise.shape


def test_a_cut_jpeg_is_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = np.ascontiguousarray(np.rot90(quarters(40, 60)))
    content = save(tmp_path / "a.jpg", stored, exif=exif, quality=95, subsampling=0).read_bytes()
    (tmp_path / "a.jpg").write_bytes(content[:-2])
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - quarters(40, 60)).mean() < 3


def test_apples_gpu_is_chosen_and_named(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert records.choose_device() in ("cpu", "mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert records.choose_device() == "mps" and "Apple" in records.device_name()
    assert status_of("info") == 0 and "mps (GPU of an Apple computer)" in capsys.readouterr().out
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert records.choose_device() == "cuda"


def test_nothing_of_float64_goes_to_a_gpu(quick, tmp_path, monkeypatch):
    """Apple's has none. What would be moved there is looked at where it is moved."""
    moved, move = [], torch.Tensor.to

    def watched(tensor, *arguments, **named):
        if arguments and isinstance(arguments[0], torch.device):
            moved.append(tensor.dtype)
        return move(tensor, *arguments, **named)

    monkeypatch.setattr(torch.Tensor, "to", watched)
    quick.score(save(tmp_path / "a.png", patches(200)))
    assert set(moved) == {torch.float32}
    for detector in DETECTORS.values():
        crops = np.zeros((1, 2, 8, 8, 3) if hasattr(detector, "clip_length") else (1, 8, 8, 3), np.uint8)
        assert detector.prepare(crops).dtype == torch.float32, detector.name


def test_files_are_written_where_open_ones_keep_their_names(tmp_path, monkeypatch):
    """As on Windows: no fcntl, no time of an open file, and no renaming of one."""
    imported, replaced, timed = builtins.__import__, os.replace, os.utime

    def without_fcntl(name, *arguments, **named):
        if name == "fcntl":
            raise ImportError(name)
        return imported(name, *arguments, **named)

    def renames_no_open_file(source, target):
        held = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
        if os.path.realpath(source) in held:
            raise PermissionError(13, "The process cannot access the file", str(source))
        replaced(source, target)

    def takes_no_number(path, *arguments):
        assert not isinstance(path, int)
        timed(path, *arguments)

    monkeypatch.setattr(builtins, "__import__", without_fcntl)
    monkeypatch.setattr(os, "replace", renames_no_open_file)
    monkeypatch.setattr(os, "utime", takes_no_number)
    files.write_json(tmp_path / "a.json", [1])
    assert json.loads((tmp_path / "a.json").read_text()) == [1]
    with pytest.raises(InputError, match="nothing was written"), files.atomic_path(tmp_path / "b.txt"):
        pass
    assert files.remove_half_written(tmp_path) == []
    with files.locked_folder(tmp_path), pytest.raises(InputError, match="Another run is writing"):
        files.locked_folder(tmp_path).__enter__()


def test_the_command_line_asks_for_the_processor_where_a_gpu_cannot():
    assert status_of("--version") == 0 and os.environ["PYTORCH_ENABLE_MPS_FALLBACK"] == "1"
    assert cli.io is io

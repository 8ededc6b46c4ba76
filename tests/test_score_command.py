"""What `deepfake-nb score` prints, writes and returns."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import status_of
from PIL import Image
from scoring import CONTRACT, patches, save, textured

from deepfake_nb.evaluation.calibration import read_calibrations, write_calibrations
from deepfake_nb.media.video import write_video
from deepfake_nb.networks.weights import REGISTRY
from deepfake_nb.scoring.score import DETECTORS, MediaScorer
from deepfake_nb.study.files import InputError


def test_the_command_line_takes_a_stride(small_video_resnet, talking, tmp_path, capsys):
    about = ["score", str(talking), "--detector", "altfreezing", "--weights", str(small_video_resnet)]
    assert status_of(*about, "--stride", "4", "--json", tmp_path / "v.json") == 0
    (record,) = json.loads((tmp_path / "v.json").read_text())
    assert set(record) == CONTRACT and record["detector"] == "altfreezing" and record["score"] is not None
    assert "rendered people" in capsys.readouterr().out
    assert status_of(*about, "--stride", "0") == 2 and "stride of clips is 0" in capsys.readouterr().err


def test_exit_status_distinguishes_usage_errors_from_nothing_scored(with_test_detector, tmp_path, capsys):
    save(tmp_path / "face.png", patches(200))
    write_video(tmp_path / "wall.mp4", [patches()] * 3, 25)
    assert status_of("score", tmp_path / "face.png", tmp_path / "wall.mp4", "--detector", "test") == 0
    assert status_of("score", tmp_path / "wall.mp4", "--detector", "test") == 3
    assert status_of("score") == 2 and status_of("score", tmp_path, "--camera", "0") == 2
    assert status_of("score", tmp_path, "--frames", "3") == 2
    assert status_of("score", tmp_path, "--detector", "test", "--calibration", tmp_path / "absent.json") == 3
    assert status_of("score", tmp_path, "--detector", "test", "--false-alarm-rate", "0") == 2
    assert status_of("calibrate", tmp_path, "--detector", "test", "--out", tmp_path / "c.json") == 3
    assert "no media file in" in capsys.readouterr().err


def test_a_score_without_a_calibration_counts_as_scored_and_is_shown(with_test_detector, tmp_path, capsys):
    for number in range(2):
        save(tmp_path / "media" / f"{number}.png", patches(200))
    assert status_of("score", tmp_path / "media", "--detector", "test") == 0
    said = capsys.readouterr().out
    lines = [line for line in said.splitlines() if line.startswith("abstain")]
    assert len(lines) == 2 and all(line.endswith("for a forgery, not calibrated") for line in lines)
    assert "Of 2 files, 0 called fake, 0 called real, 2 without a verdict." in said
    assert said.count("Not calibrated: the score is no probability") == 1
    assert said.count("`deepfake-nb calibrate` fits one") == 1 and "weights fetch" not in said


def test_the_line_of_a_file_names_the_task(with_test_detector, believed_file, tmp_path, monkeypatch, capsys):
    save(tmp_path / "media" / "light.png", patches(230))
    for task, words in (("edited", "an edited face"), ("generated", "a generated face"), (None, "a forgery")):
        monkeypatch.setitem(DETECTORS, "test", replace(DETECTORS["test"], task=task))
        how = ("--detector", "test", "--calibration", believed_file, "--json", tmp_path / "v.json")
        assert status_of("score", tmp_path / "media", *how) == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("fake")]
        assert f"probability of {words} " in line
        (record,) = json.loads((tmp_path / "v.json").read_text())
        assert record["task"] == task and 0 < record["real_below"] <= record["threshold"] < 1


def test_what_is_the_same_for_all_files_is_said_once_for_each_kind(
    with_test_detector, believed_file, tmp_path, capsys
):
    for number in range(2):
        save(tmp_path / "media" / f"{number}.png", patches(230))
        write_video(tmp_path / "media" / f"{number}.mp4", [patches(230)] * 20, 25)
    how = ("--detector", "test", "--calibration", believed_file)
    assert status_of("score", tmp_path / "media", *how) == 0
    assert capsys.readouterr().out.count("and above is called fake") == 1, (
        "both kinds have the same threshold"
    )
    calibration = read_calibrations(believed_file)["picture"]
    write_calibrations(tmp_path / "c.json", calibration)
    assert status_of("score", tmp_path / "media", *how[:3], tmp_path / "c.json") == 0
    said = capsys.readouterr().out
    assert (
        "Pictures, a forgery: 0." in said
        and said.count("Videos, a forgery: Not calibrated (the calibration") == 1
    )


@pytest.mark.parametrize("is_there", [True, False])
def test_after_the_small_network_the_better_detectors_are_named_once(
    with_test_detector, tmp_path, monkeypatch, capsys, is_there
):
    from deepfake_nb.networks.weights import Whereabouts
    from deepfake_nb.scoring import score

    small = replace(DETECTORS["test"], name="small-faces")
    monkeypatch.setitem(DETECTORS, "small-faces", small)
    monkeypatch.setattr(score, "locate_weights", lambda _: Whereabouts("cache", is_there))
    for number in range(2):
        save(tmp_path / "media" / f"{number}.png", patches(230))
    assert status_of("score", tmp_path / "media", "--detector", "small-faces") == 0
    said = capsys.readouterr().out
    assert said.count("`deepfake-nb weights fetch clip-vit-b16` (78 MB, once)") == (not is_there)


def test_the_list_of_weights_fits_a_terminal_and_one_is_shown_in_full(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert status_of("weights", "list") == 0
    said = capsys.readouterr().out
    lines = said.splitlines()
    starts = [at for at, line in enumerate(lines) if line.split(" ")[0] in REGISTRY]
    assert len(starts) == len(REGISTRY) and max(map(len, lines)) <= 80
    ends = [*starts[1:], next(at for at, line in enumerate(lines) if line.startswith("All about one"))]
    assert max(end - start for start, end in zip(starts, ends, strict=True)) <= 2, said
    for name, entry in REGISTRY.items():
        assert status_of("weights", "show", name) == 0
        shown = "".join(capsys.readouterr().out.split())
        assert all("".join(text.split()) in shown for text in (entry.source, entry.licence)), shown
    assert status_of("weights", "show", "meso9") == 2


def test_what_would_help_is_said_once_a_reason_and_where_nothing_was_scored_too(
    with_test_detector, tmp_path, capsys
):
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / name, [patches()] * 3, 25)
    (tmp_path / "empty.png").touch()
    assert status_of("score", tmp_path, "--detector", "test") == 3
    said, complaint = capsys.readouterr()
    assert said.count("No face was found in 3 frames looked at.") == 2
    assert said.count("seen from the front, upright") == 1 and "is empty (0 bytes). Copy" in said
    assert complaint == "Error: Nothing could be scored; the lines above say why.\n", (
        "a live line is for terminals"
    )


def test_what_a_real_verdict_does_not_cover_is_on_its_line(
    with_test_detector, believed_file, tmp_path, capsys
):
    """Half a film and the first image of an animation must not pass for a look at all of it."""
    whole = write_video(tmp_path / "whole.mp4", [patches(80 + number % 9) for number in range(50)], 25)
    (tmp_path / "half.mp4").write_bytes(whole.read_bytes()[: whole.stat().st_size * 9 // 10])
    whole.unlink()
    pictures = [Image.fromarray(patches(level)) for level in (80, 240)]
    pictures[0].save(tmp_path / "moving.gif", save_all=True, append_images=pictures[1:])
    how = ("--detector", "test", "--calibration", believed_file, "--json", tmp_path / "v.json")
    assert status_of("score", tmp_path, *how) == 0
    said = capsys.readouterr().out
    lines = {
        line.split()[1].rpartition("/")[2]: line for line in said.splitlines() if line.startswith("real")
    }
    assert set(lines) == {"half.mp4", "moving.gif"}
    assert "before the length that it states" in lines["half.mp4"]
    assert "only its first frame was looked at" in lines["moving.gif"] and "means that no sign" in said
    assert not any("above is called fake" in line for line in lines.values()), "once at the end is enough"
    assert all(
        "above is called fake" in record["reason"] for record in json.loads((tmp_path / "v.json").read_text())
    )


def test_an_abstention_with_a_score_is_no_failure(with_test_detector, calibrated, tmp_path):
    write_calibrations(tmp_path / "c.json", calibrated)
    save(tmp_path / "odd.png", textured(150, np.random.default_rng(2), tint=(-40, 60, -40), spread=60))
    how = ("--detector", "test", "--calibration", tmp_path / "c.json", "--json", tmp_path / "v.json")
    assert status_of("score", tmp_path / "odd.png", *how) == 0
    assert json.loads((tmp_path / "v.json").read_text())[0]["verdict"] == "abstain"


@pytest.mark.parametrize(
    "fault, status", [(KeyboardInterrupt, {1, 130}), (RuntimeError, None), (InputError, {3})]
)
def test_a_report_that_is_broken_off_has_an_index_of_what_was_finished(
    with_test_detector, believed_file, tmp_path, monkeypatch, capsys, fault, status
):
    for number in range(3):
        save(tmp_path / "media" / f"{number}.png", patches(200))
    examine = MediaScorer.examine

    def stop_at_the_third(self, path, keep=3):
        if Path(path).name == "2.png":
            raise fault("the power fails")
        return examine(self, path, keep)

    monkeypatch.setattr(MediaScorer, "examine", stop_at_the_third)
    how = ("score", tmp_path / "media", "--detector", "test", "--report", tmp_path / "r")
    how += ("--json", tmp_path / "v.json", "--calibration", believed_file)
    if status is None:
        with pytest.raises(fault):
            status_of(*how)
    else:
        assert status_of(*how) in status
    index = (tmp_path / "r" / "index.html").read_text()
    assert "2 files. Looks forged: 2." in index and "The run was broken off" in index
    pages = {path.name for path in (tmp_path / "r").glob("*.html")} - {"index.html"}
    assert len(pages) == 2 and all(f'href="{name}"' in index for name in pages)
    assert len(json.loads((tmp_path / "v.json").read_text())) == 2, (
        "whatever ends a run, its verdicts are kept"
    )

"""Fitting a calibration on labelled media or predictions, from Python and from the command line."""

import csv
import json

import numpy as np
import pandas as pd
import pytest
from commands import status_of
from layouts import WhiteSquares
from PIL import Image
from scoring import Brightness, detector_of, patches, save, sigmoid, textured

from deepfake_nb.evaluation.calibration import read_calibrations
from deepfake_nb.media.video import write_video
from deepfake_nb.scoring.fit_calibration import calibrate
from deepfake_nb.scoring.score import MediaScorer
from deepfake_nb.study.files import InputError, UsageError


def test_options_that_are_wrong_for_every_kind_are_refused_as_such(with_test_detector, tmp_path):
    rows = [(str(n), n % 2, 0.5, name, "picture", str(n)) for n in range(40) for name in "abcde"]
    table = pd.DataFrame(rows, columns=["media_id", "label", "score", "detector", "kind", "person"])
    scorer = MediaScorer(detector_of(Brightness()), device="cpu", face_detector=WhiteSquares())
    with pytest.raises(UsageError, match="At most 4 detectors"):
        calibrate(table, scorer, "made numbers")
    with pytest.raises(InputError, match="No media file got a score"):
        calibrate(table.iloc[:0], scorer, "nothing")


@pytest.mark.slow
def test_a_kind_of_too_few_people_is_left_out_and_the_other_calibrated(
    with_test_detector, known, tmp_path, capsys
):
    for path in known.rglob("*.png"):
        save(tmp_path / "media" / path.relative_to(known), np.array(Image.open(path)))
    for number, name in enumerate(("real", "fake")):
        for copy in range(2):
            write_video(tmp_path / "media" / name / f"{copy}.mp4", [patches(105 + 45 * number)] * 8, 25)
    how = ("calibrate", tmp_path / "media", "--detector", "test", "--out", tmp_path / "c.json")
    assert status_of(*how) == 0
    said = capsys.readouterr().out
    assert "There is no calibration for videos: What 4 people look like says little of others" in said
    assert "60 pictures of 60 people" in said and set(read_calibrations(tmp_path / "c.json")) == {"picture"}
    for path in [*(tmp_path / "media").rglob("*.png"), tmp_path / "c.json"]:
        path.unlink()
    assert status_of(*how) == 3 and "What 4 people look like" in capsys.readouterr().err
    assert not (tmp_path / "c.json").exists()


def test_predictions_can_be_calibrated_without_media(with_test_detector, tmp_path, capsys):
    rng = np.random.default_rng(0)
    lines = ["media_id,label,score"] + [
        f"{n},{n % 2},{sigmoid(n % 2 * 2 - 1 + rng.normal()):.4f}" for n in range(40)
    ]
    (tmp_path / "p.csv").write_text("\n".join(lines))
    how = ("calibrate", tmp_path / "p.csv", "--detector", "test", "--out", tmp_path / "c.json")
    assert status_of(*how) == 2 and "--kind" in capsys.readouterr().err
    assert (
        status_of(*how, "--kind", "picture") == 0
        and "nothing will be called unlike" in capsys.readouterr().out
    )
    assert read_calibrations(tmp_path / "c.json")["picture"].familiarity is None


@pytest.mark.slow
def test_calibrate_and_score_on_the_command_line(with_test_detector, known, tmp_path, capsys):
    out = tmp_path / "own.json"
    assert (
        status_of("calibrate", known, "--detector", "test", "--out", out, "--about", "patches of mine") == 0
    )
    said = capsys.readouterr().out
    assert "60 pictures of 60 people, 30 of them fake: patches of mine" in said and "is called fake" in said
    save(tmp_path / "media" / "light.png", textured(168, np.random.default_rng(0)))
    about = (
        "--detector",
        "test",
        "--calibration",
        out,
        "--json",
        tmp_path / "v.json",
        "--csv",
        tmp_path / "v.csv",
    )
    assert status_of("score", tmp_path / "media", *about, "--false-alarm-rate", "0.2") == 0
    said = capsys.readouterr().out
    assert "probability" in said and "no proof" in said and "Of 1 file, 1 called fake" in said
    (record,) = json.loads((tmp_path / "v.json").read_text())
    assert record["verdict"] == "fake" and record["calibration"].endswith("patches of mine")
    with open(tmp_path / "v.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["interval_low"]) <= float(row["probability"]) <= float(row["interval_high"])

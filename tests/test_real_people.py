"""What is behind `deepfake-nb train-detector`: what is left out is left out, and what is written says so."""

import json

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import expit

from deepfake_nb.detectors import reencoding
from deepfake_nb.detectors.corpus import MARGIN, SIZE, STORED
from deepfake_nb.detectors.detector_training import load_or_make
from deepfake_nb.detectors.generated_faces import fit_probe, leave_out_generators, select_stills
from deepfake_nb.detectors.held_out import (
    auc_by_source,
    count_verdicts,
    decide_left_out,
    fit_calibrations,
    format_auc,
    list_as_videos_and_images,
    read_all_predictions,
    sample_portraits,
    select_left_out,
)
from deepfake_nb.detectors.model_cards import model_card, write_detector
from deepfake_nb.detectors.real_people import make_detector
from deepfake_nb.detectors.reencoding import cut_ladder_faces, score_ladder
from deepfake_nb.evaluation.calibration import read_calibrations
from deepfake_nb.media.video import write_video
from deepfake_nb.networks.weights import check_file
from deepfake_nb.study.files import UsageError

SOURCES = ("video_calls", "celebdf", "ffpp_c23", "modern_swap")


def predictions(seed=0, people=8, gap=2.0):
    """Made predictions: of each source some people, each with a genuine and a forged video."""
    rng, rows = np.random.default_rng(seed), []
    for source in SOURCES:
        for person in range(people):
            for label in (0, 1):
                name = f"{source}/{person}-{label}.mp4"
                score = float(expit(rng.normal(gap * (label - 0.5), 0.7)))
                method = source if label else "original"
                rows += [(name, source, method, f"{source}-{person}", label, "edited", "video", how, score) for how in ("people", "source")]  # fmt: skip
    names = ["media", "source", "method", "person", "label", "task", "kind", "held_out", "score"]
    return pd.DataFrame(rows, columns=names)


@pytest.fixture
def corpus():
    """A table like that of `open_corpus`, without files behind it."""
    rows = [
        (f"{source}/{person}-{label}.mp4", label, "edited", source, source if label else "original", f"{source}-{person}", None, "video")
        for source in SOURCES
        for person in range(6)
        for label in (0, 1)
    ]  # fmt: skip
    for split in ("train", "val", "test"):
        for n in range(10):
            for label in (0, 1):
                method = "stylegan" if label else "original"
                rows.append((f"synthetic_stills/{split}/{n}-{label}.jpg", label, "generated", "synthetic_stills", method, f"s{split}{n}{label}", split, "image"))  # fmt: skip
    rows += [(f"real_faces/{n}.jpg", 0, "edited", "real_faces", "original", f"real_faces-{n}", None, "image") for n in range(40)]  # fmt: skip
    table = pd.DataFrame(
        rows, columns=["media", "label", "task", "source", "method", "person", "split", "kind"]
    )
    return table.assign(path=table.media, crops=table.media, faces=1)


def test_each_medium_is_left_out_once_for_its_person_and_once_for_its_source(corpus):
    rows = pd.concat([select_left_out(corpus, fold) for fold in range(4)])
    edited = corpus[(corpus.task == "edited") & (corpus.source != "real_faces")]
    for held_out in ("people", "source"):
        assert sorted(rows.media[rows.held_out == held_out]) == sorted(edited.media)


def test_nobody_who_is_left_out_is_trained_on(corpus):
    from deepfake_nb.detectors.detector_training import select_training_media

    for fold in range(4):
        trained, asked = select_training_media(corpus, fold), select_left_out(corpus, fold)
        assert set(trained.person).isdisjoint(asked.person)
        sources = set(asked.source[asked.held_out == "source"])
        assert sources and sources.isdisjoint(trained.source)


def test_portraits_that_are_tested_on_were_not_trained_on(corpus):
    from deepfake_nb.detectors.detector_training import select_portraits

    assert set(sample_portraits(corpus).media).isdisjoint(select_portraits(corpus).media)


def test_auc_by_source_has_an_interval_around_it():
    found = auc_by_source(predictions(), resamples=200)
    assert len(found) == 2 * len(SOURCES)
    known = found.dropna()
    assert len(known) and (known.low <= known.auc).all() and (known.auc <= known.high).all()
    assert (found.people == 8).all() and (found.auc[found.low.isna()] == 1).all()
    assert {format_auc(row) for row in found[found.low.isna()].itertuples()} == {"1.00"}


def test_decisions_on_a_group_do_not_depend_on_its_labels():
    one = predictions()[lambda rows: rows.held_out == "source"].assign(detector="d").reset_index(drop=True)
    other = one.copy()
    calls = other.source == "video_calls"
    other.loc[calls, "label"] = 1 - other.label[calls]
    first, second = (decide_left_out(table, "source") for table in (one, other))
    assert (first.verdict[calls] == second.verdict[calls]).all()


def test_counts_of_verdicts():
    table = pd.DataFrame({"label": [0, 0, 1, 1], "verdict": ["real", "fake", "fake", "abstain"]})
    found = count_verdicts(table)
    assert found["abstentions"] == 0.25 and found["right"] == pytest.approx(2 / 3)
    assert found["genuine called fake"] == 0.5 and found["fakes called real"] == 0.0


def test_a_video_counts_as_a_video_and_by_one_face_as_an_image():
    rows = pd.DataFrame({"media": ["a.mp4", "b.jpg"], "kind": ["video", "image"]})
    found = list_as_videos_and_images(rows, [np.array([-2.0, 0.0, 2.0]), np.array([1.0])])
    assert found.kind.tolist() == ["video", "image", "image"]
    np.testing.assert_allclose(found.score, [0.5, 0.5, expit(1.0)])


def test_a_step_that_left_a_file_is_not_made_again(tmp_path):
    first = load_or_make(tmp_path / "a" / "t.parquet", lambda: pd.DataFrame({"n": [1]}))
    again = load_or_make(tmp_path / "a" / "t.parquet", lambda: pytest.fail("made again"))
    assert first.equals(again)


# -- the ladder


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    from deepfake_nb.people.heads import random_identity
    from deepfake_nb.people.rendering import render_stills

    image = render_stills([random_identity(4)], "studio", seed=2).images[0]
    larger = cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    return write_video(tmp_path_factory.mktemp("clip") / "person.mp4", [larger] * 12, 25, crf=18)


@pytest.mark.slow
def test_every_rung_shows_the_face(clip):
    found = cut_ladder_faces(clip, frames=12, faces=3)
    assert list(found) == ["original", *reencoding.LADDER]
    large = [found[name] for name in ("original", "crf 28", "crf 38", "motion JPEG", "six frames")]
    assert all(faces.shape == (3, STORED, STORED, 3) for faces in large)
    worst, mild = (
        np.abs(found[name].astype(float) - found["original"]).mean() for name in ("crf 48", "crf 28")
    )
    assert worst > mild > 0


class MeanBrightness(torch.nn.Module):
    def forward(self, faces):
        return faces.mean((1, 2, 3))


class Unused(torch.nn.Module):
    def forward(self, faces):
        pytest.fail("a network was used on a person of its training data")


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_the_ladder_uses_the_network_that_left_the_person_out(clip, tmp_path, monkeypatch, jobs):
    monkeypatch.setenv("DEEPFAKE_NB_CACHE", str(tmp_path))
    rows = pd.DataFrame({"path": [str(clip)], "media": ["person.mp4"], "label": [0], "person": ["p"], "source": ["s"], "fold": [1]})  # fmt: skip
    networks = {0: Unused(), 1: MeanBrightness()}
    found = score_ladder(networks, rows, jobs=jobs)
    assert set(found.version) == {"original", *reencoding.LADDER}
    assert found.score.between(0, 1).all() and found.face_score.between(0, 1).all()
    assert score_ladder(networks, rows, jobs=1).equals(found)


# -- the probe


def test_a_probe_finds_a_line():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    tokens = rng.normal(0, 0.1, (200, 8)) + labels[:, None] * np.eye(8)[0]
    weights, constant = fit_probe(tokens, labels)
    assert (((tokens @ weights + constant) > 0) == labels).mean() > 0.95 and np.argmax(weights) == 0


def test_a_generator_that_is_left_out_is_judged_by_a_probe_without_it():
    rng, rows = np.random.default_rng(1), []
    for number in range(240):
        method = ("original", "original", "one", "two")[number % 4]
        rows.append((f"{number}.jpg", "set", method, int(method != "original"), "generated", f"p{number}"))
    table = pd.DataFrame(rows, columns=["media", "source", "method", "label", "task", "person"])
    tokens = rng.normal(0, 0.05, (240, 1, 4))
    for place, method in enumerate(("one", "two")):  # each generator leaves a trace of its own
        tokens[table.method == method, 0, place] += 1
    found = leave_out_generators(table, tokens, tokens, (np.arange(240) % 3 > 0))
    seen, unseen = (
        auc_by_source(found[found.held_out == how], resamples=20).auc[0] for how in ("people", "source")
    )
    assert seen > 0.95 and unseen < 0.8
    assert set(found.against) == {"", "one", "two"}


class Sharpness(torch.nn.Module):
    """Stands for a probe's network: its one token is how much neighbouring pixels differ."""

    blocks = (0,)

    def forward_features(self, faces):
        return (faces[..., 1:] - faces[..., :-1]).abs().mean((1, 2, 3))[:, None]


def test_a_still_is_scored_in_all_versions(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (1, STORED, STORED, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", faces=noise, landmarks=np.zeros((1, 5, 2)), sides=np.ones(1))
    rows = pd.DataFrame({"media": ["a.jpg"], "label": [0], "person": ["p"], "source": ["s"], "crops": [str(tmp_path / "a.npz")]})  # fmt: skip
    found = reencoding.score_still_ladder(Sharpness(), np.ones(1), 0.0, rows).set_index("version")
    assert set(found.index) == {"original", *reencoding.STILL_LADDER}
    assert found.score["half size"] < found.score["original"] and (found.score == found.face_score).all()


def test_stills_of_the_probe_keep_the_splits(corpus):
    found = select_stills(corpus)
    stills = found[found.task == "generated"]
    assert (stills.trained == (stills.split == "train")).all()
    assert not (found.label[found.task == "edited"] == 1).any()


# -- what is written


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    from deepfake_nb.networks.face_encoder import ClipProbe

    out = tmp_path_factory.mktemp("detector")
    made = {
        "seed": 1,
        "device": "cpu (2 cores)",
        "stages": {"blends": {"steps": 3, "seconds": 60, "first_loss": 0.7, "last_loss": 0.5}},
    }
    rows = predictions()
    ladder = pd.DataFrame({"media": np.repeat(rows.media.unique()[:20], 2), "version": ["original", "crf 38"] * 20, "label": np.repeat([0, 1] * 10, 2), "person": np.repeat([f"p{n}" for n in range(20)], 2), "source": "s", "score": np.tile([0.3, 0.4], 20), "face_score": np.tile([0.2, 0.4], 20)})  # fmt: skip
    write_detector(
        "edited-faces",
        "clip-probe",
        ClipProbe((0,)),
        rows,
        out,
        made,
        "made numbers",
        {"blocks": [0]},
        ladder,
    )
    return out


def test_weights_calibration_predictions_and_card_are_written(written):
    names = {path.name for path in written.iterdir()}
    assert names == {"edited-faces.safetensors", "calibration-edited-faces-video.json", "predictions.csv", "ladder.csv", "training.json", "README.md"}  # fmt: skip
    report = check_file(written / "edited-faces.safetensors")
    (found,) = read_calibrations(written / "calibration-edited-faces-video.json").values()
    assert found.weights == {"edited-faces": report.sha256}
    (combination,) = found.combinations.values()
    assert combination.wobble > 0 and combination.forged


def test_the_card_says_what_was_measured(written):
    card = model_card("edited-faces", written)
    found = auc_by_source(pd.read_csv(written / "predictions.csv"))
    for row in found.itertuples():
        assert format_auc(row) in card
    assert "| all |" in card
    assert "Where it fails" in card and "3 steps" in card and card.startswith("---\n")


def test_frames_of_videos_stand_apart(tmp_path):
    from deepfake_nb.networks.face_encoder import ClipProbe
    from deepfake_nb.sections.pretrained_encoder import read_held_out

    rows = predictions()
    rows = pd.concat([rows, rows.assign(kind="image")], ignore_index=True)
    write_detector("small-faces", "clip-probe", ClipProbe((0,)), rows, tmp_path, {"seed": 1}, "made numbers", {"blocks": [0]})  # fmt: skip
    assert set(read_held_out(tmp_path / "predictions.csv").kind) == {"video"}
    assert len(read_all_predictions(tmp_path)) == len(rows)
    assert (tmp_path / "calibration-small-faces-picture.json").is_file()


def test_a_calibration_needs_both_classes():
    rows = predictions()
    assert fit_calibrations(rows[rows.label == 0], "edited-faces", "0" * 64, "made numbers") == []


def test_an_unknown_detector_is_refused(tmp_path):
    with pytest.raises(UsageError, match="Choose one of: edited-faces"):
        make_detector("all-faces", tmp_path, tmp_path)


def test_one_face_is_the_middle_one_without_its_margin(tmp_path):
    faces = np.stack([np.full((STORED, STORED, 3), value, np.uint8) for value in (10, 20, 30)])
    np.savez(tmp_path / "crops.npz", faces=faces, landmarks=np.zeros((3, 5, 2)), sides=np.ones(3))
    face = reencoding.read_middle_face(tmp_path / "crops.npz")
    assert face.shape == (SIZE, SIZE, 3) and (face == 20).all() and STORED == SIZE + 2 * MARGIN
    changed = [
        reencoding.read_middle_face(tmp_path / "crops.npz", np.random.default_rng(3)) for _ in range(2)
    ]
    assert (changed[0] == changed[1]).all()


def test_weights_are_kept_in_json_safe_numbers(written):
    assert json.loads((written / "training.json").read_text())["seed"] == 1
    assert torch.isfinite(torch.tensor(pd.read_csv(written / "predictions.csv").score.to_numpy())).all()

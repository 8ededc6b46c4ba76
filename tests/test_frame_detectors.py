"""Frame detectors: one's own images, weights of one's own, and the section on both."""

import json
import shutil

import layouts
import numpy as np
import pandas as pd
import pytest
import timm
import torch
from commands import run_section

from deepfake_nb.data.stills import check_stills, load_own_stills
from deepfake_nb.networks.backbones import count_parameters
from deepfake_nb.sections.frame_detectors import (
    FacesDataset,
    SimpleNet,
    both_areas,
    detect_collapse,
    load_faces,
    xception_detector,
    xception_head,
)
from deepfake_nb.sections.paper_sets import load_stills
from deepfake_nb.study.files import InputError


@pytest.fixture(scope="module")
def course_layout(tmp_path_factory):
    root = tmp_path_factory.mktemp("own")
    for name in ("swaps", "made"):
        for split, count in (("train", 4), ("val", 2), ("test", 3)):
            for label in ("real", "fake"):
                layouts.noise(root / name / split / label, count)
    return root


def test_real_pictures_come_first_and_have_label_0(course_layout):
    faces = load_faces(load_own_stills(course_layout / "swaps"), "train", 32)
    assert np.asarray(faces.labels).tolist() == [0] * 4 + [1] * 4
    picture, label = faces[faces.real_len]
    assert tuple(picture.shape) == (32, 32, 3) and label == 1 and picture.float().mean() > 125
    assert len(set(faces.media_ids)) == len(faces)


def test_a_plain_folder_is_split_by_identity(tmp_path):
    layouts.noise(tmp_path / "mine" / "real", 20)
    layouts.noise(tmp_path / "mine" / "fake", 20)
    stills = load_own_stills(tmp_path / "mine", seed=3)
    sides = stills.manifest.groupby(["split", "label"]).size()
    assert set(sides.index.get_level_values("split")) == {"train", "val", "test"} and sides.sum() == 40
    assert load_own_stills(tmp_path / "mine", seed=3).manifest.equals(stills.manifest)


def test_videos_among_the_pictures_are_left_alone(course_layout, tmp_path):
    shutil.copytree(course_layout / "swaps", tmp_path / "set")
    (tmp_path / "set" / "train" / "real" / "clip.mp4").write_bytes(b"")
    assert len(load_own_stills(tmp_path / "set").manifest) == 18


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("absent", "There is no folder"),
        ("empty split", "has no fake image in val"),
        ("one label", "no real image"),
    ],
)
def test_a_set_that_cannot_be_used_is_refused_in_words(tmp_path, broken, words):
    root = tmp_path / "set"
    for split in ("train", "val", "test"):
        for label in ("real", "fake"):
            if not (
                (broken == "empty split" and (split, label) == ("val", "fake"))
                or (broken == "one label" and label == "real")
            ):
                layouts.noise(root / split / label, 2)
    if broken == "absent":
        root = tmp_path / "elsewhere"
    with pytest.raises(InputError, match=words):
        load_own_stills(root)


def test_the_error_for_a_missing_folder_lists_those_beside_it(course_layout):
    with pytest.raises(InputError, match=r"course-fakes'\. Beside it: made, swaps\."):
        load_stills("course-fakes", "smoke", 0, data_root=course_layout, folder="course-fakes")


def test_somebody_on_both_sides_is_refused(course_layout, tmp_path):
    shutil.copytree(course_layout / "swaps", tmp_path / "set")
    lines = ["file,source_id"] + [f"{split}/real/{split}_00.jpg,anna" for split in ("train", "test")]
    (tmp_path / "set" / "index.csv").write_text("\n".join(lines))
    with pytest.raises(InputError, match="both sides of a split, such as 'anna'"):
        load_own_stills(tmp_path / "set")


def test_profile_paper_needs_a_data_root():
    with pytest.raises(InputError, match="data_root"):
        load_stills("course-fakes", "paper", 0)


def test_checked_stills_come_back(course_layout):
    stills = load_own_stills(course_layout / "made")
    assert check_stills(stills) is stills


def test_an_unreadable_picture_is_named(course_layout, tmp_path):
    shutil.copytree(course_layout / "swaps", tmp_path / "set")
    (tmp_path / "set" / "test" / "fake" / "test_01.jpg").write_bytes(b"not a picture")
    with pytest.raises(InputError, match=r"test_01\.jpg"):
        load_faces(load_own_stills(tmp_path / "set"), "test", 32).read(np.arange(6))


def test_xception_without_network_says_so(monkeypatch):
    def unreachable(*_, pretrained=False, **__):
        if pretrained:
            raise OSError("no route")
        return real(*_, **__)

    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", unreachable)
    backbone = xception_detector("hub")
    assert backbone.weights.startswith("not pretrained") and count_parameters(backbone.network) == 23_128_786


def test_xception_reads_timm_weights_from_a_file(tmp_path):
    torch.manual_seed(1)
    network = timm.create_model("legacy_xception")
    torch.save(network.state_dict(), tmp_path / "xception.pth")
    backbone = xception_detector(tmp_path / "xception.pth")
    assert torch.equal(backbone.network.conv4.conv1.weight, network.conv4.conv1.weight)
    assert backbone.weights == "pretrained weights from xception.pth"


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save(SimpleNet().state_dict(), tmp_path / "simplenet.pth")
    with pytest.raises(InputError, match=r"does not fit timm's legacy_xception"):
        xception_detector(tmp_path / "simplenet.pth")


class Trap:
    def __reduce__(self):
        return print, ("run!",)


def test_weights_that_would_run_code_are_refused(tmp_path, capsys):
    torch.save({"weights": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(InputError, match="was not opened"):
        xception_detector(tmp_path / "trap.pth")
    assert "run!" not in capsys.readouterr().out


def test_same_seed_same_weights():
    first, second = (xception_detector("none", seed=5).network.fc[0].weight for _ in range(2))
    assert torch.equal(first, second) and not torch.equal(
        first, xception_detector("none", seed=6).network.fc[0].weight
    )


def test_weights_from_a_seed_leave_global_randomness_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    xception_detector("none", seed=5)
    assert torch.equal(torch.rand(2), expected)


def test_weights_from_a_seed_are_those_of_a_network_built_after_it():
    torch.manual_seed(5)
    network = timm.create_model("legacy_xception")
    head = xception_head()
    made = xception_detector("none", seed=5).network
    assert torch.equal(made.conv1.weight, network.conv1.weight)
    assert torch.equal(made.fc[0].weight, head[0].weight)


def test_head_has_no_activation_at_its_end():
    assert isinstance(xception_head((4, 3, 2))[-1], torch.nn.Linear) and len(xception_head((4, 3, 2))) == 3


def test_areas_of_both_scores_add_to_one_only_for_probabilities():
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], 200)
    logits = rng.normal(0, 3, (400, 1)) + rng.normal(0, 1, (400, 2)) + np.outer(label, [-0.3, 0.8])
    areas = both_areas(pd.DataFrame({"label": label, "logit_real": logits[:, 0], "logit_fake": logits[:, 1]}))
    assert areas.loc["softmax", "sum"] == pytest.approx(1) and abs(areas.loc["logits", "sum"] - 1) > 0.02


def test_areas_of_one_label_are_undefined_and_no_number():
    table = pd.DataFrame({"label": [1, 1], "logit_real": [0.0, 1.0], "logit_fake": [1.0, 0.0]})
    assert both_areas(table).isna().all(axis=None)


def test_a_collapse_is_a_rule_and_not_an_accuracy():
    labels = np.repeat([0, 1], 50)
    wrong_on_both = np.where(np.arange(100) % 2, 0.9, 0.1)
    assert not detect_collapse(labels, wrong_on_both).collapsed
    assert detect_collapse(labels, np.full(100, 0.5)) == (True, "fake", 1.0, 0.0)


@pytest.mark.slow
def test_the_section_runs_on_ones_own_pictures_as_published(course_layout, tmp_path):
    settings = {"fakes_set": "swaps", "synthetic_set": "made", "xception_weights": "none"}
    run_section("frame_detectors", course_layout, tmp_path, protocol="published", **settings)
    folder = tmp_path / "smoke" / "frame_detectors"
    results = json.loads((folder / "results.json").read_text())
    pictures = {"the images in 'swaps'", "the images in 'made'", "no pictures"}
    assert {result["data"] for result in results} == pictures
    assert {result["protocol"] for result in results} == {"published"}
    areas = [
        r["value"] for r in results if r["row"].endswith("softmax") and r["metric"] == "AUC fake + AUC real"
    ]
    assert areas == pytest.approx([1, 1, 1])
    predictions = pd.read_parquet(folder / "predictions.parquet")
    assert (
        predictions.groupby(["detector", "train_set", "eval_set"]).size().eq(6).all()
        and len(predictions) == 36
    )
    worn = pd.read_parquet(folder / "robustness.parquet")
    assert (
        worn.groupby(["detector", "train_set"]).size().tolist() == [4 * 8 * 2] * 3
        and (worn.train_set == worn.eval_set).all()
    )


def test_faces_dataset_by_hand(tmp_path):
    layouts.noise(tmp_path / "real", 2)
    layouts.noise(tmp_path / "fake", 1)
    faces = FacesDataset(sorted((tmp_path / "real").iterdir()), sorted((tmp_path / "fake").iterdir()), 32)
    assert (len(faces), faces.real_len, faces.fake_len) == (3, 2, 1)

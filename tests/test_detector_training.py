"""Training of detectors: batches that depend on seed and step alone, and a killed training that ends as an undisturbed one."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from deepfake_nb.detectors import detector_training
from deepfake_nb.detectors.corpus import SIZE, STORED, face_points, is_trained_on
from deepfake_nb.detectors.detector_training import (
    Batches,
    DetectorSettings,
    group_rows,
    predict_files,
    sample_row,
    select_portraits,
    select_training_media,
    train_detector,
)
from deepfake_nb.study.files import InputError

pytestmark = pytest.mark.usefixtures("one_thread")
SETTINGS = DetectorSettings(steps=6, pairs=2, forgeries=1, warmup=2, seed=3)
MARGIN = (STORED - SIZE) // 2


class Tiny(nn.Module):
    """The smallest network with an encoder and a head."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.body, self.head = nn.Conv2d(3, 4, 9, stride=8), nn.Linear(4, 1)

    def forward(self, faces):
        return self.head(torch.tanh(self.body(faces)).mean((2, 3))).squeeze(1)

    @property
    def parts(self):
        return list(self.body.parameters()), list(self.head.parameters())


def store(path, count, level, rng):
    """Stored faces: noise around a grey level."""
    faces = np.clip(rng.normal(level, 25, (count, STORED, STORED, 3)), 0, 255).astype(np.uint8)
    landmarks = np.repeat(np.float32(face_points() + MARGIN)[None], count, 0)
    np.savez(path, faces=faces, landmarks=landmarks, sides=np.full(count, 200, np.float32))
    return str(path)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Portraits, and two sources of videos with a genuine and a forged one of each of two people."""
    folder, rng, rows = tmp_path_factory.mktemp("faces"), np.random.default_rng(0), []
    for number in range(3):
        rows.append(("real_faces", "original", f"portrait {number}", 0, "image", 1))
    for source in ("calls", "films"):
        for person in ("a", "b"):
            rows.append((source, "original", f"{source} {person}", 0, "video", 2))
            rows.append((source, "swap", f"{source} {person}", 1, "video", 2))
    table = pd.DataFrame(rows, columns=["source", "method", "person", "label", "kind", "count"])
    table["crops"] = [
        store(folder / f"{place}.npz", row["count"], 90 + 90 * row.label, rng)
        for place, row in table.iterrows()
    ]
    return table.assign(task="edited", split=None)


def same(one, other):
    return all((a == b).all() for a, b in zip(one, other, strict=True))


# --- Batches --------------------------------------------------------------------------------------------------------


def test_a_batch_holds_pairs_and_forgeries_beside_genuine_faces(table):
    images, labels = Batches(table, SETTINGS)[0]
    assert images.shape == (2 * 2 + 2 * 1, SIZE, SIZE, 3) and images.dtype == np.uint8
    assert labels.tolist() == [0, 1, 0, 1, 1, 0] and labels.dtype == np.float32


def test_a_batch_depends_on_seed_and_step_alone(table):
    forward, backward = Batches(table, SETTINGS), Batches(table, SETTINGS)
    ahead = {step: forward[step] for step in (0, 1, 2)}
    back = {step: backward[step] for step in (2, 0, 1)}
    assert all(same(ahead[step], back[step]) for step in ahead)
    assert not same(ahead[0], ahead[1])
    assert not same(ahead[0], Batches(table, replace(SETTINGS, seed=4))[0])
    assert same(ahead[0], Batches(table, replace(SETTINGS, steps=99, learning_rate=1.0))[0])


def test_without_forgeries_no_forged_file_is_read(table):
    settings = replace(SETTINGS, forgeries=0)
    broken = table.assign(crops=table.crops.where(table.label == 0, "no such file.npz"))
    assert same(Batches(table, settings)[1], Batches(broken, settings)[1])


def test_groups_are_drawn_evenly_however_large():
    table = pd.DataFrame({"method": ["often"] * 98 + ["seldom"] * 2})
    tree, rng = group_rows(table, ["method"]), np.random.default_rng(0)
    share = np.mean([sample_row(tree, rng) >= 98 for _ in range(400)])
    assert 0.4 < share < 0.6


def test_a_source_of_weight_nothing_is_never_drawn(table):
    batches = Batches(table, SETTINGS, source_weights={"films": 0.0})
    assert dict(zip(batches.tree, batches.weights, strict=True)) == {"calls": 1.0, "films": 0.0}


def test_the_learning_rate_rises_and_falls_to_a_tenth():
    settings = DetectorSettings(steps=50, warmup=10)
    rates = [settings.rate_at(step) for step in range(51)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == pytest.approx(1)
    assert (
        (np.diff(rates[:10]) > 0).all()
        and (np.diff(rates[10:]) < 0).all()
        and rates[-1] == pytest.approx(0.1)
    )


# --- The loop -------------------------------------------------------------------------------------------------------


def trained(table, folder, settings=SETTINGS, **options):
    network = Tiny()
    records = train_detector(
        network, *network.parts, Batches(table, settings), folder, checkpoint_every=2, **options
    )
    return network, records


@pytest.fixture(scope="module")
def undisturbed(table, tmp_path_factory):
    return trained(table, tmp_path_factory.mktemp("undisturbed"))


class Killed(Exception):
    """In place of the signal."""


def kill_at(step):
    def tell(at, record):
        if at == step:
            raise Killed

    return tell


def weights_of(network):
    return {name: tensor.tolist() for name, tensor in network.state_dict().items()}


def without_time(records):
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records]


def test_training_changes_body_and_head_and_reports_each_step(undisturbed):
    network, records = undisturbed
    assert [record["step"] for record in records] == list(range(6)) and not network.training
    before = Tiny().state_dict()
    assert all((tensor != before[name]).any() for name, tensor in network.state_dict().items())
    assert all(np.isfinite(record["loss"]) and 0 <= record["accuracy"] <= 1 for record in records)


@pytest.mark.parametrize("step", [0, 3])
def test_a_killed_training_ends_with_the_same_weights(table, undisturbed, tmp_path, step):
    with pytest.raises(Killed):
        trained(table, tmp_path, tell=kill_at(step))
    told = []
    network, records = trained(table, tmp_path, tell=lambda at, record: told.append(at))
    assert told == list(range(step // 2 * 2, 6)), "it goes on at the last checkpoint"
    assert weights_of(network) == weights_of(undisturbed[0])
    assert without_time(records) == without_time(undisturbed[1])


def test_a_finished_training_is_not_trained_again(table, undisturbed, tmp_path):
    trained(table, tmp_path)
    network, records = trained(table, tmp_path, tell=kill_at(0))
    assert len(records) == 6 and weights_of(network) == weights_of(undisturbed[0])


def test_a_folder_of_other_settings_is_refused(table, tmp_path):
    trained(table, tmp_path, replace(SETTINGS, steps=2))
    with pytest.raises(InputError, match=r"other settings \(steps, seed\)\. Give another folder"):
        trained(table, tmp_path, replace(SETTINGS, seed=9))


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None])
def test_a_damaged_checkpoint_is_a_sentence(table, tmp_path, content):
    trained(table, tmp_path, replace(SETTINGS, steps=2))
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:200] if content is None else content)
    with pytest.raises(InputError, match=r"checkpoint\.pt' is damaged: remove it"):
        trained(table, tmp_path)


def test_a_checkpoint_is_whole_or_not_there(table, tmp_path, monkeypatch):
    def fail(content, path):
        with open(path, "wb") as file:
            file.write(b"half of")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(detector_training.torch, "save", fail)
    with pytest.raises(InputError, match="free some space"):
        trained(table, tmp_path, replace(SETTINGS, steps=2))
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_holds_nothing_that_could_run(table, tmp_path):
    trained(table, tmp_path, replace(SETTINGS, steps=2))
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert len(content["tensors"]) == 4 and len(json.loads(content["records"])) == 2


# --- What is trained on ---------------------------------------------------------------------------------------------


def test_portraits_are_genuine_stills_and_a_fifth_is_left(table):
    people = [f"person {number}" for number in range(300)]
    portraits = pd.DataFrame({"person": people, "source": "real_faces"})
    more = portraits.assign(label=0, kind="image", task="edited", split=None, method="original", crops="")
    chosen = select_portraits(pd.concat([table, more], ignore_index=True))
    assert set(chosen.source) == {"real_faces"} and (chosen.label == 0).all()
    assert 0.7 < chosen.person.str.startswith("person").sum() / 300 < 0.9
    test = select_portraits(more.assign(split="test"))
    assert not len(test) and len(select_portraits(more.assign(split="train"))) == 300


def test_a_fold_leaves_out_what_it_is_tested_on(table):
    edited = table[table.source != "real_faces"]
    for fold in range(4):
        media = select_training_media(table, fold)
        folds = detector_training.assign_folds(edited)
        left_out = edited[~is_trained_on(edited, folds, fold)]
        assert set(media.crops).isdisjoint(left_out.crops)
    assert set(select_training_media(table).crops) >= set(edited.crops)


# --- Predictions ----------------------------------------------------------------------------------------------------


def test_predictions_are_those_of_the_middle_of_each_face(table, tmp_path):
    network = Tiny().eval()
    empty = store(tmp_path / "empty.npz", 0, 0, np.random.default_rng(0))
    files = [*table.crops[:4], empty]
    found = predict_files(network, files, batch_size=3)
    assert [len(rows) for rows in found] == [*table["count"][:4], 0]
    with np.load(files[3]) as content:
        inner = content["faces"][:, MARGIN:-MARGIN, MARGIN:-MARGIN]
    with torch.inference_mode():
        expected = network(torch.from_numpy(inner).permute(0, 3, 1, 2).float() / 255)
    assert found[3] == pytest.approx(expected.numpy(), abs=1e-5)
    assert [len(rows) for rows in predict_files(network, files, most=1)] == [1, 1, 1, 1, 0]
    told = []
    wide = predict_files(
        network, files, output=lambda faces: faces.mean((2, 3)), batch_size=3, tell=told.append
    )
    assert wide[0].shape == (1, 3) and told == [3]

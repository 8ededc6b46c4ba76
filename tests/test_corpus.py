"""A corpus of small sources in every layout: people, folds that share nobody, and faces that are stored once."""

import csv
import json
from itertools import product

import cv2
import numpy as np
import pandas as pd
import pytest
from layouts import Everywhere

from deepfake_nb.detectors import corpus
from deepfake_nb.detectors.corpus import (
    COLUMNS,
    MARGIN,
    SIZE,
    STORED,
    assign_folds,
    crop_with_margin,
    cut_crops,
    cut_tight,
    face_points,
    is_trained_on,
    prepare_crops,
    read_corpus,
    read_crops,
    store_crops,
)
from deepfake_nb.media.faces import Detections
from deepfake_nb.media.video import write_video
from deepfake_nb.study.files import InputError

FRAMES = [np.full((48, 48, 3), 40 * number, np.uint8) for number in range(1, 5)]


def still(path, level=120):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((48, 48, 3), level, np.uint8))


def clip(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, FRAMES, frame_rate=25)


def index(folder, rows):
    with open(folder / "index.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, sorted({name for row in rows for name in row}))
        writer.writeheader()
        writer.writerows(rows)


def make_ffpp(root):
    """Two pairs of people, one method, two compressions."""
    for person in ("001", "002", "003", "004"):
        clip(root / f"original_sequences/youtube/c23/videos/{person}.mp4")
    for target, source in (("001", "002"), ("003", "004")):
        for compression in ("c23", "c40"):
            clip(root / f"manipulated_sequences/Deepfakes/{compression}/videos/{target}_{source}.mp4")


def make_web_videos(root):
    """An index that names person, source and method; one person is also in FaceForensics++."""
    rows = []
    for source, people, methods in (
        ("classic_swap", "fg", ["prnet"]),
        ("modern_swap", ["o253", "b"], ["simswap", "fsgan"]),
    ):
        for person in people:
            name = f"{source}_{person}"
            files = [(f"real/{name}/a.mp4", "original"), *((f"fake/{name}/{m}.mp4", m) for m in methods)]
            for file, method in files:
                clip(root / file)
                rows.append({"file": file, "person": name, "source": source, "method": method})
    index(root, rows)


def make_calls(root):
    """The same file name for both halves of a pair; the streamer is in the name."""
    for name, half in product(("01_Ava_1", "02_Ava_2", "03_Ben_1"), ("real", "fake")):
        clip(root / half / f"{name}.mp4")


def make_generated(root):
    """Stills with splits, and an index that names the generator."""
    rows = []
    for number, (split, label) in enumerate(product(("train", "test"), ("real", "fake"))):
        file = f"{split}/{label}/{number}.jpg"
        still(root / file)
        rows.append({"file": file, "generator": "sd21" if label == "fake" else "", "source": "x"})
    index(root, rows)


def make_swap_stills(root):
    """Stills of the same pair as in FaceForensics++."""
    rows = [
        {"file": "train/real/a.jpg", "source_id": "", "target_id": "001", "method": "original"},
        {"file": "train/fake/b.jpg", "source_id": "002", "target_id": "001", "method": "Deepfakes"},
    ]
    for row in rows:
        still(root / row["file"])
    index(root, rows)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpus")
    make_ffpp(root / "ffpp")
    make_web_videos(root / "web_videos")
    make_calls(root / "video_calls")
    make_generated(root / "generators_stills")
    make_swap_stills(root / "swap_stills")
    for half in ("Celeb-real/id1_0000", "Celeb-synthesis/id1_id2_0000"):
        clip(root / "celebdf" / f"{half}.mp4")
    clip(root / "dfdc" / "abc.mp4")
    about = {"abc.mp4": {"label": "FAKE", "original": "def.mp4", "split": "train"}}
    (root / "dfdc" / "metadata.json").write_text(json.dumps(about))
    for name in ("Ann_0001", "Bea_0001"):
        still(root / "real_faces" / f"{name}.jpg")
    still(root / "lfw" / "real" / "somebody.jpg")
    (root / "notes").mkdir()
    return root


@pytest.fixture(scope="module")
def table(root):
    return read_corpus(root)


def rows_of(table, source):
    return table[table.source == source]


def test_every_layout_becomes_rows_of_one_table(table, root):
    assert tuple(table.columns) == COLUMNS
    assert set(table.source) == {
        "ffpp_c23", "ffpp_c40", "classic_swap", "modern_swap", "video_calls", "generators_stills", "celebdf", "dfdc", "real_faces",
    }  # fmt: skip
    assert table.path.map(lambda path: path.startswith(str(root))).all() and table.path.is_unique
    assert set(table.label) == {0, 1} and set(table.kind) == {"image", "video"}
    assert (table.method[table.label == 0] == "original").all()
    assert set(table.task[table.source == "generators_stills"]) == {"generated"}
    assert set(table.task[table.source != "generators_stills"]) == {"edited"}


def test_people_are_read_from_names_folders_and_indexes(table):
    assert set(rows_of(table, "video_calls").person) == {"Ava", "Ben"}
    assert set(rows_of(table, "classic_swap").person) == {"classic_swap_f", "classic_swap_g"}
    assert set(rows_of(table, "real_faces").person) == {"real_faces-Ann_0001", "real_faces-Bea_0001"}
    generated = rows_of(table, "generators_stills")
    assert generated.person.is_unique and set(generated.method) == {"original", "sd21"}
    assert set(rows_of(table, "celebdf").person) == {"celebdf-id1"}


def test_people_that_are_swapped_with_each_other_are_one_cluster_in_all_sources(table):
    clusters = {"ffpp-001-002", "ffpp-003-004"}
    assert set(rows_of(table, "ffpp_c23").person) == set(rows_of(table, "ffpp_c40").person) == clusters
    stills = table[table.path.str.contains("swap_stills")]
    assert set(stills.source) == {"ffpp_c23"} and set(stills.person) == {"ffpp-001-002"}
    assert set(rows_of(table, "modern_swap").person) == {"ffpp-183-253", "modern_swap_b"}


def test_folders_that_hold_no_sources_are_left_alone(table):
    assert not table.path.str.contains("/lfw/").any()


def test_an_absent_or_empty_folder_is_a_sentence(tmp_path):
    with pytest.raises(InputError, match="is not a folder"):
        read_corpus(tmp_path / "nowhere")
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "readme.txt").write_text("nothing here")
    with pytest.raises(InputError, match="holds no"):
        read_corpus(tmp_path)


# --- Folds ----------------------------------------------------------------------------------------------------------


def many_people(seed=0):
    """A table of eight sources with people that are in several of them."""
    rng = np.random.default_rng(seed)
    sources = [
        "video_calls",
        "celebdf",
        "ffpp_c23",
        "modern_swap",
        "lip_sync",
        "openforensics",
        "new_one",
        "newer_one",
    ]
    rows = [
        (source, f"p{person}")
        for source in sources
        for person in rng.choice(60, 15, replace=False)
        for _ in range(2)
    ]
    return pd.DataFrame(rows, columns=["source", "person"])


@pytest.mark.parametrize("seed", range(5))
def test_a_fold_trains_on_nobody_and_no_source_that_it_leaves_out(seed):
    table = many_people(seed)
    folds = assign_folds(table)
    for fold in range(4):
        trained = is_trained_on(table, folds, fold)
        left_out = (folds.source_fold == fold) | (folds.people_fold == fold)
        assert trained.any() and left_out.any() and not (trained & left_out).any()
        assert set(table.person[trained]).isdisjoint(table.person[left_out])
        assert set(table.source[trained]).isdisjoint(table.source[folds.source_fold == fold])


def test_every_file_is_left_out_once_with_its_source_and_once_with_its_person():
    table = many_people()
    folds = assign_folds(table)
    assert folds.source_fold.between(0, 3).all() and folds.people_fold.between(0, 3).all()
    assert (folds.source_fold != folds.people_fold).all()
    assert (folds.groupby(table.source).source_fold.nunique() == 1).all()
    assert (folds.groupby([table.source, table.person]).people_fold.nunique() == 1).all()
    people = table.assign(fold=folds.people_fold).drop_duplicates(["source", "person"])
    counts = people.groupby(["source", "fold"]).size().unstack()
    assert (counts.max(axis=1) - counts.min(axis=1) <= 1).all(), "people are dealt evenly"


def test_folds_do_not_depend_on_the_order_of_the_files():
    table = many_people()
    shuffled = table.sample(frac=1, random_state=1)
    pd.testing.assert_frame_equal(assign_folds(shuffled).sort_index(), assign_folds(table))


# --- Faces ----------------------------------------------------------------------------------------------------------


def test_a_crop_has_its_landmarks_at_their_places_and_the_detectors_view_in_its_middle():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (400, 400, 3), dtype=np.uint8)
    landmarks = face_points(120) + np.float64([130, 150])
    face, placed = crop_with_margin(image, landmarks)
    assert face.shape == (STORED, STORED, 3) and placed == pytest.approx(face_points() + MARGIN, abs=1e-2)
    tight = cut_tight(image, None, landmarks)
    inner = face[MARGIN : MARGIN + SIZE, MARGIN : MARGIN + SIZE]
    assert tight.shape == inner.shape and np.abs(tight.astype(int) - inner).max() <= 2


def test_faces_of_a_video_are_spread_over_it(root):
    crops = cut_crops(root / "video_calls/real/01_Ava_1.mp4", "video", Everywhere(), most=3)
    assert (
        len(crops) == 3 and crops.faces.shape == (3, STORED, STORED, 3) and crops.landmarks.shape == (3, 5, 2)
    )
    levels = crops.faces[:, STORED // 2, STORED // 2].mean(-1)
    assert (np.diff(levels) > 20).all() and (crops.sides == 48).all()


class Nobody(Everywhere):
    """A face detector that finds none."""

    def detect(self, image):
        return Detections(
            np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros((0, 5, 2), np.float32)
        )


def test_a_file_without_a_face_has_an_empty_file_of_faces(root, tmp_path):
    stored = store_crops(root / "real_faces/Ann_0001.jpg", "image", tmp_path, 4, Nobody())
    assert len(read_crops(stored)) == 0


@pytest.fixture
def everywhere(monkeypatch):
    """Every image is a face, in the processes that look for them too: they are forked."""
    monkeypatch.setattr(corpus, "CenterFace", lambda **options: Everywhere())


def test_faces_are_cut_once_and_read_back(everywhere, table, tmp_path, monkeypatch):
    rows = pd.concat([rows_of(table, "video_calls"), rows_of(table, "real_faces")])
    told = []
    files = prepare_crops(rows, tmp_path, jobs=1, most=2, tell=told.append)
    assert len(files) == len(set(files)) == len(rows) and told[-1] == len(rows)
    assert [len(read_crops(file)) for file in files] == [2] * 6 + [1] * 2

    def refuse(*arguments):
        raise AssertionError("it was cut again")

    monkeypatch.setattr(corpus, "cut_crops", refuse)
    assert prepare_crops(rows, tmp_path, jobs=1, most=2) == files


def test_a_file_that_changes_is_cut_again(everywhere, tmp_path):
    still(tmp_path / "a.jpg", 50)
    first = store_crops(tmp_path / "a.jpg", "image", tmp_path / "crops", 1, Everywhere())
    still(tmp_path / "a.jpg", 220)
    (tmp_path / "a.jpg").touch()
    second = store_crops(tmp_path / "a.jpg", "image", tmp_path / "crops", 1, Everywhere())
    assert first != second and read_crops(second).faces.mean() > read_crops(first).faces.mean() + 50


def test_an_unreadable_file_is_said_in_its_place_and_the_others_are_cut(everywhere, tmp_path):
    still(tmp_path / "good.jpg")
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8 and then nothing")
    rows = pd.DataFrame({"path": [str(tmp_path / name) for name in ("bad.jpg", "good.jpg")], "kind": "image"})
    bad, good = prepare_crops(rows, tmp_path / "crops", jobs=1)
    assert bad.startswith("! ") and "bad.jpg" in bad and len(read_crops(good)) == 1


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"no archive"]
)
def test_a_damaged_file_of_faces_is_a_sentence(tmp_path, damage):
    still(tmp_path / "a.jpg")
    stored = store_crops(tmp_path / "a.jpg", "image", tmp_path, 1, Everywhere())
    with open(stored, "rb") as file:
        whole = file.read()
    with open(stored, "wb") as file:
        file.write(damage(whole))
    with pytest.raises(InputError, match="cannot be read: remove the file"):
        read_crops(stored)
    with pytest.raises(InputError, match="cannot be read"):
        read_crops(tmp_path / "absent.npz")

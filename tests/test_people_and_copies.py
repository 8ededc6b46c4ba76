"""Who is who: one rule for people in folders, splits that are given, equal content under several names."""

import json
import os

import layouts
import numpy as np
import pandas as pd
import pytest
from commands import status_of
from PIL import Image

from deepfake_nb.data import builds
from deepfake_nb.data.adapters import find_leaks, find_person, scan_source, split_by_identity
from deepfake_nb.data.builds import check, plan
from deepfake_nb.data.stills import load_cross_stills, load_own_stills
from deepfake_nb.evaluation.predictions import describe_counts, name_folders, people_of, read_predictions
from deepfake_nb.scoring.fit_calibration import find_labelled_media, read_scores_to_calibrate
from deepfake_nb.study.files import find_copies, walk_folder


def picture(path, number):
    """An image like no other number's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(number).integers(0, 255, (16, 16, 3), np.uint8)).save(path)
    return path


@pytest.fixture
def people(tmp_path):
    """Ten people of each label with three images each, and two of both."""
    for number in range(72):
        label = "fake" if number >= 36 else "real"
        picture(tmp_path / "mine" / label / f"person{number // 3 % 14:02}" / f"{number}.png", number)
    return tmp_path / "mine"


@pytest.mark.parametrize(
    ("path", "person"),
    {
        "real/ann/0.png": "ann",
        "real/ann/call 1/0.png": "ann",
        "Fake\\ben\\0.png": "ben",
        "/data/real/set/fake/000/1.png": "000",
        "train/real/0.png": None,
        "real/train/ann/0.png": "ann",
        "fake/Deepfakes/0.png": None,
        "fake/SimSwap/ann/0.png": "ann",
        "real/deepfakes/0.png": "deepfakes",
        "holiday/0.png": None,
        "real/original/0.png": None,
    }.items(),
)
def test_the_folder_below_the_label_is_the_person(path, person):
    assert find_person(path) == person


@pytest.mark.parametrize("splits", ["official", "identity"])
def test_nobody_in_a_folder_of_a_person_is_parted(people, splits):
    manifest, _ = plan("folder", people, splits=splits)
    assert manifest.source_id.nunique() == 14 and set(manifest.split) == {"train", "val", "test"}
    assert find_leaks(manifest).empty and (manifest.groupby("source_id").split.nunique() == 1).all()


def test_an_index_or_a_pattern_says_otherwise(tmp_path):
    names = ["real/set1/004.png", "real/set2/x.png", "fake/004_982/0.png", "fake/004_982/1.png"]
    layouts.place(tmp_path, names)
    (tmp_path / "index.csv").write_text("file,person\nreal/set2/x.png,ann\n")
    pattern = r"(?P<target>\d{3})(_(?P<source>\d{3}))?"
    found = scan_source("folder", tmp_path, {"identity_pattern": pattern}).manifest.set_index("path")
    people = found[["target_id", "source_id"]].loc[names].values.tolist()
    assert people == [[None, "004"], [None, "ann"], ["004", "982"], ["004", "982"]]


def test_calibrating_knows_the_same_people(people):
    media = find_labelled_media(people)
    manifest = scan_source("folder", people).manifest
    assert set(media.person) == set(manifest.source_id) and media.person.nunique() == 14
    (people / "index.csv").write_text("file,person\nreal/person00/0.png,zoe\n")
    assert "zoe" in set(find_labelled_media(people).person)
    table = media.rename(columns={"path": "media_id"}).drop(columns="person").assign(score=0.5)
    table.to_csv(people.parent / "scores.csv", index=False)
    read = read_scores_to_calibrate(people.parent / "scores.csv", ["test"], "picture")
    assert read.person.nunique() == 14


def test_stills_are_split_by_the_same_people(people):
    stills = load_own_stills(people)
    assert find_leaks(stills.manifest).empty and stills.manifest.source_id.nunique() > 10


def test_given_splits_outlive_a_stray_file(tmp_path):
    for number, split in enumerate(("train", "val", "test")):
        for label, name in enumerate(("real", "fake")):
            for copy in range(4):
                picture(tmp_path / "mine" / split / name / f"{copy}.png", 100 * number + 10 * label + copy)
    calm = load_own_stills(tmp_path / "mine").manifest
    picture(tmp_path / "mine" / "real" / "x.png", 999)
    picture(tmp_path / "mine" / "other.png", 998)
    stills = load_own_stills(tmp_path / "mine")
    pd.testing.assert_frame_equal(stills.manifest, calm)
    assert [path for path, _ in stills.left_out] == ["other.png", "real/x.png"]
    assert stills.data == "the images in 'mine' (2 left out)"
    assert "train, val and test" in dict(stills.left_out)["real/x.png"]
    assert dict(load_cross_stills(tmp_path / "mine").left_out).keys() == {"other.png"}
    planned, _ = plan("folder", tmp_path / "mine")
    kept = planned.set_index("path").split
    assert (kept[calm.path].values == calm.split.values).all() and kept["real/x.png"] in calm.split.values


def test_copies_never_cross_a_split(tmp_path):
    for number in range(40):
        picture(tmp_path / ("real", "fake")[number % 2] / f"{number}.png", number // 4 + 20 * (number % 2))
    for seed in range(3):
        manifest, rejected = plan("folder", tmp_path, settings=builds.BuildSettings(seed=seed))
        digests = [(tmp_path / path).read_bytes() for path in manifest.path]
        assert (manifest.groupby(digests).split.nunique() == 1).all() and not rejected
        assert manifest.split.nunique() == 3
    assert "content" not in manifest


def test_of_copies_in_given_splits_one_is_kept_and_the_others_are_named(tmp_path):
    for number, name in enumerate(
        ("train/real/a", "train/fake/b", "test/real/c", "test/fake/d", "val/real/e")
    ):
        picture(tmp_path / f"{name}.png", number)
    picture(tmp_path / "train" / "real" / "again.png", 2)
    picture(tmp_path / "train" / "fake" / "as real.png", 4)
    manifest, rejected = plan("folder", tmp_path)
    reason = "its content stands in test too, as test/real/c.png"
    assert rejected == [{"path": "train/real/again.png", "reason": reason}]
    assert {"train/fake/as real.png", "val/real/e.png"} <= set(manifest.path), "`check` has to tell these"


def test_people_whom_copies_join_stay_together():
    rows = [(f"{n}.png", n % 2, f"p{n // 2}", None, "same" if n in (0, 5) else None) for n in range(40)]
    keys = ["path", "label", "source_id", "target_id", "content"]
    table = pd.DataFrame(rows, columns=keys).assign(media_id=lambda t: t.path, split=None)
    done = split_by_identity(table, rng=np.random.default_rng(0)).set_index("path").split
    assert done["0.png"] == done["1.png"] == done["4.png"] == done["5.png"]


@pytest.fixture
def quick_faces(monkeypatch):
    """Builds for which every image is a face."""
    monkeypatch.setattr(builds, "_detector", lambda *_: layouts.Everywhere())


def test_check_counts_people_on_both_sides_and_tells_copies(people, tmp_path, quick_faces, capsys):
    for name in ("train/real/ann/0", "train/fake/ben/1", "test/real/ann/2", "test/fake/cleo/3"):
        picture(tmp_path / "given" / f"{name}.png", sum(map(ord, name)))
    builds.build("folder", tmp_path / "given", tmp_path / "given built", settings={"crop_size": 32})
    found = check(tmp_path / "given built")
    assert found.counts.set_index("split")["in other splits"].to_dict() == {"train": 1, "test": 1}
    assert "ann stands in test, train" in found.problems[0]
    (people / "real" / "person01" / "again.png").write_bytes(
        next((people / "real" / "person00").iterdir()).read_bytes()
    )
    arguments = (
        "data",
        "build",
        "folder",
        "--root",
        people,
        "--out",
        tmp_path / "built",
        "--set",
        "crop_size=32",
    )
    assert (
        status_of(*arguments) == 0 and "1 of them hold the content of another one" in capsys.readouterr().out
    )
    assert status_of("data", "check", tmp_path / "built") == 0
    out = capsys.readouterr().out
    assert "1 files hold the content of another one, such as" in out and "again.png" in out.replace("\n", "")
    assert check(tmp_path / "built").counts["in other splits"].sum() == 0


def test_links_are_followed_once_last_and_never_upwards(tmp_path):
    for name in ("set/b/1", "set/c/2", "disk/d/3", "disk/4"):
        layouts.place(tmp_path, [name])
    links = {
        "set/a": "set/b",
        "set/c/up": "set",
        "set/outside": ".",
        "set/disk": "disk",
        "disk/back": "set/c",
    }
    for link, target in links.items():
        (tmp_path / link).symlink_to(tmp_path / target, target_is_directory=True)
    found = [os.path.relpath(here, tmp_path / "set") for here, _ in walk_folder(tmp_path / "set")]
    assert found == [".", "b", "c", "disk", "disk/d"]


def test_copies_are_found_by_content_alone(tmp_path):
    names = ["a", "b", "c", "d", "empty 1", "empty 2"]
    for name, content in zip(
        names, (b"x" * 70_000, b"x" * 69_999 + b"y", b"x" * 70_000, b"z", b"", b""), strict=True
    ):
        (tmp_path / name).write_bytes(content)
    os.mkfifo(tmp_path / "pipe")
    paths = [tmp_path / name for name in (*names, "pipe", "gone")]
    assert find_copies(paths) == {tmp_path / "a": tmp_path / "a", tmp_path / "c": tmp_path / "a"}


def test_evaluate_says_what_it_counts(tmp_path, capsys):
    rows = [
        (f"my/{('real', 'fake')[n % 2]}/p{n % 8}/{n}.png", n % 2, 0.3 + 0.4 * (n % 2) + n / 1000)
        for n in range(80)
    ]
    table = pd.DataFrame(rows, columns=["image_path", "truth", "prob"])
    table.to_csv(tmp_path / "frames.csv", index=False)
    assert status_of("evaluate", tmp_path / "frames.csv") == 0
    out, err = capsys.readouterr()
    assert (
        "Columns: image_path (media file), truth (label), prob (score). 80 media files, of 8 people." in out
    )
    assert (
        "resample media files" in out and "80 images lie in 8 folders" in err and "--clusters folder" in err
    )
    for clusters in ("folder", "person"):
        assert status_of("evaluate", tmp_path / "frames.csv", "--clusters", clusters) == 0
        assert f"resample the 8 values of {clusters}" in capsys.readouterr().out
    assert status_of("evaluate", tmp_path / "frames.csv", "--clusters", "nobody") == 2


def test_files_side_by_side_are_no_frames_of_one_video(tmp_path, capsys):
    rows = [(f"real/{n}.png", 0, n / 100) for n in range(40)] + [
        (f"fake/{n}.png", 1, n / 50) for n in range(40)
    ]
    pd.DataFrame(rows, columns=["media_id", "label", "score"]).to_csv(tmp_path / "flat.csv", index=False)
    table = read_predictions(tmp_path / "flat.csv")
    assert name_folders(table).nunique() == people_of(table).nunique() == 80
    assert "80 media files, and nothing names the people in them" in describe_counts(table)
    assert status_of("evaluate", tmp_path / "flat.csv") == 0 and "Note" not in capsys.readouterr().err


def test_a_part_unpacked_twice_is_told(tmp_path, quick_faces):
    entries = {f"{name}.png": {"label": "REAL", "split": "train"} for name in "abc"}
    for number, part in enumerate(("part_0", "part_0/part_0", "part_1")):
        for name in entries:
            picture(tmp_path / "dfdc" / part / name, ord(name[0]) + 10 * (number == 2))
        (tmp_path / "dfdc" / part / "metadata.json").write_text(json.dumps(entries))
    builds.build("dfdc", tmp_path / "dfdc", tmp_path / "out", settings={"crop_size": 32})
    report = check(tmp_path / "out")
    assert any(warning.startswith("3 files hold the content of another one") for warning in report.warnings)
    for splits in ("official", "identity"):
        manifest, _ = plan("dfdc", tmp_path / "dfdc", splits=splits)
        digests = [(tmp_path / "dfdc" / path).read_bytes() for path in manifest.path]
        assert len(manifest) == 9 and (manifest.groupby(digests).split.nunique() == 1).all()

"""Adapters on small copies of each layout, on wrong folders, and on real media where there are any."""

import json
import os

import layouts
import numpy as np
import pandas as pd
import pytest

from deepfake_nb.adapters import (
    SOURCES,
    as_manifest,
    assert_no_leak,
    identity_components,
    leaks,
    scan_source,
    split_by_identity,
)
from deepfake_nb.study import InputError, UsageError


def test_ffpp_tells_four_methods_apart_that_share_file_names(tmp_path):
    manifest = scan_source("ffpp", layouts.ffpp(tmp_path)).manifest
    assert len(manifest) == 4 + 8 + 2
    assert manifest.media_id.is_unique
    same_name = manifest[manifest.path.str.endswith("/004_982.mp4")]
    assert set(same_name.method) == {"Deepfakes", "FaceSwap"}
    assert set(same_name.target_id) == {"004"} and set(same_name.source_id) == {"982"}


def test_ffpp_official_splits_leave_actors_open(tmp_path):
    layouts.ffpp_splits(layouts.ffpp(tmp_path))
    manifest = scan_source("ffpp", tmp_path).manifest
    splits = manifest.groupby(manifest.split.fillna("none")).size().to_dict()
    assert splits == {"train": 6, "test": 6, "none": 2}
    assert_no_leak(manifest)


def test_ffpp_keeps_one_compression_and_some_methods(tmp_path):
    layouts.ffpp(tmp_path, compressions=("c23", "c40"))
    assert len(scan_source("ffpp", tmp_path).manifest) == 28
    kept = scan_source("ffpp", tmp_path, {"compression": "c40", "methods": "original,Deepfakes"}).manifest
    assert len(kept) == 9 and kept.path.str.contains("c40").all()


def test_ffpp_two_sequences_of_one_download_are_one_person(tmp_path):
    layouts.ffpp(tmp_path)
    (tmp_path / "conversion_dict.json").write_text(
        json.dumps({"004": "abcdefghijk 0", "054": "abcdefghijk 1"})
    )
    manifest = scan_source("ffpp", tmp_path).manifest
    groups = dict(zip(manifest.media_id, identity_components(manifest), strict=True))
    assert groups["youtube--c23--982"] == groups["youtube--c23--071"]


@pytest.mark.parametrize("version", ["celeb-df-v1", "celeb-df-v2"])
def test_celeb_df_list_writes_1_for_real(tmp_path, version):
    scan = scan_source(version, layouts.celeb_df(tmp_path))
    manifest = scan.manifest.set_index("media_id")
    assert set(manifest.dataset) == {version}
    assert manifest.loc["YouTube-real--00001", ["label", "split"]].tolist() == [0, "test"]
    assert manifest.loc["Celeb-synthesis--id0_id1_0000", ["label", "split"]].tolist() == [1, "test"]
    assert manifest.loc["Celeb-real--id1_0000", "split"] == "train"
    reasons = {row["path"]: row["reason"] for row in scan.rejected}
    assert "disagree" in reasons["Celeb-synthesis/id1_id0_0000.mp4"]
    assert "absent" in reasons["Celeb-synthesis/id7_id8_0000.mp4"]


def test_celeb_df_without_the_list_has_no_official_split(tmp_path):
    layouts.celeb_df(tmp_path)
    (tmp_path / "List_of_testing_videos.txt").unlink()
    assert scan_source("celeb-df-v2", tmp_path).manifest.split.isna().all()


def test_celeb_df_official_split_leaks_and_the_identity_split_does_not(tmp_path):
    manifest = scan_source("celeb-df-v2", layouts.celeb_df(tmp_path)).manifest
    assert set(leaks(manifest).identity) == {"id0", "id1"}
    by_people = split_by_identity(manifest.assign(split=None), rng=np.random.default_rng(0))
    assert_no_leak(by_people)


def test_dfdc_same_names_in_two_parts_and_absent_files(tmp_path):
    scan = scan_source("dfdc", layouts.dfdc(tmp_path))
    assert scan.manifest.media_id.is_unique and len(scan.manifest) == 4
    assert scan.manifest.label.sum() == 2 and scan.manifest.source_id[scan.manifest.label == 1].isna().all()
    assert [row["path"] for row in scan.rejected] == ["dfdc_train_part_0/no.mp4", "dfdc_train_part_1/no.mp4"]


def test_dfdc_one_part_alone_and_a_broken_listing(tmp_path):
    layouts.dfdc(tmp_path)
    assert len(scan_source("dfdc", tmp_path / "dfdc_train_part_0").manifest) == 2
    (tmp_path / "dfdc_train_part_1" / "metadata.json").write_text('{"real.mp4": {"lab')
    scan = scan_source("dfdc", tmp_path)
    assert len(scan.manifest) == 2
    assert any("not a readable JSON" in row["reason"] for row in scan.rejected)


def test_dfdc_preview_tells_both_people(tmp_path):
    layouts.place(tmp_path, ["original_videos/1/1_A_001.mp4", "method_B/1/1_A/2_1_A_001.mp4"])
    fake = {"label": "fake", "set": "train", "target_id": 1, "swapped_id": 2, "augmentations": []}
    real = {"label": "real", "set": "train", "target_id": 1, "swapped_id": None, "augmentations": []}
    entries = {"original_videos/1/1_A_001.mp4": real, "method_B/1/1_A/2_1_A_001.mp4": fake}
    (tmp_path / "dataset.json").write_text(json.dumps(entries | {"method_A/gone.mp4": fake}))
    scan = scan_source("dfdc-preview", tmp_path)
    row = scan.manifest[scan.manifest.label == 1].iloc[0]
    assert (row.source_id, row.target_id, row.method) == ("2", "1", "method_B")
    assert len(scan.rejected) == 1


@pytest.mark.parametrize("nested", [".", "Dataset"])
def test_openforensics_labels_by_name_not_by_the_alphabet(tmp_path, nested):
    layouts.stills(tmp_path / nested)
    manifest = scan_source("openforensics", tmp_path).manifest
    assert manifest.label.tolist() == manifest.path.str.contains("/Fake/").astype(int).tolist()
    assert manifest.split.value_counts().to_dict() == {"train": 4, "val": 4, "test": 4}


def test_course_layout_and_plain_folder(tmp_path):
    layouts.stills(tmp_path / "course", splits=("train", "val", "test"), labels=("real", "fake"))
    assert len(scan_source("course", tmp_path / "course").manifest) == 12
    layouts.place(
        tmp_path / "own", ["a/b/real/x y.mp4", "fake/ä.PNG", "fake/._ä.PNG", "other.jpg", "real/fake/z.jpg"]
    )
    scan = scan_source("folder", tmp_path / "own")
    assert scan.manifest[["path", "label"]].values.tolist() == [["a/b/real/x y.mp4", 0], ["fake/ä.PNG", 1]]
    assert len(scan.rejected) == 2


def test_the_combined_stills_leak_shows(tmp_path):
    names = [
        "train/real/129_1.png",
        "test/real/129_4.png",
        "test/fake/067_025_1.png",
        "train/fake/id3_id2_0001_9.png",
    ]
    manifest = scan_source("ffpp-celeb-df", layouts.place(tmp_path / "1000_videos", names).parent).manifest
    assert leaks(manifest).identity.tolist() == ["129"]
    assert manifest.source_id.tolist() == ["025", "129", "id2", "129"]


def test_zoom_table_refuses_what_lies_outside_and_reads_odd_names(tmp_path):
    rows = [("calls/Élodie am Abend.mp4", "real", "Élodie", ""), ("calls/b.mp4", "FAKE", "ann", "Élodie")]
    rows += [("../out.mp4", "real", "x", ""), ("/etc/passwd", "real", "x", ""), ("c.mp4", "perhaps", "x", "")]
    scan = scan_source("zoom", layouts.recordings(tmp_path, rows[:2] + rows[2:3] + rows[4:]))
    assert len(scan.manifest) == 2 and len(scan.rejected) == 2
    assert scan.manifest.media_id.str.fullmatch(r"[A-Za-z0-9_.-]+").all()
    (tmp_path / "recordings.csv").write_text("file,truth\na,b\n")
    with pytest.raises(InputError, match="no column label and path"):
        scan_source("zoom", tmp_path)


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_a_wrong_root_gets_a_sentence(tmp_path, name):
    with pytest.raises(InputError, match="is not a folder"):
        scan_source(name, tmp_path / "nowhere")
    (tmp_path / "holiday").mkdir()
    layouts.place(tmp_path, ["holiday/beach.jpg", "notes.txt"])
    with pytest.raises(InputError, match=r"Expected: .*Found: holiday/, notes.txt"):
        scan_source(name, tmp_path)


def test_unknown_names_are_usage_errors(tmp_path):
    with pytest.raises(UsageError, match="no data set 'ff'"):
        scan_source("ff", tmp_path)
    with pytest.raises(UsageError, match="regular expression"):
        scan_source("folder", layouts.stills(tmp_path), {"identity_pattern": "(?P<source"})


def test_links_are_followed_once_and_a_closed_folder_is_reported(tmp_path, monkeypatch):
    layouts.place(tmp_path / "disk2", ["a.mp4"])
    layouts.place(tmp_path / "set", ["real/b.mp4", "fake/closed/c.mp4"])
    (tmp_path / "set" / "real" / "more").symlink_to(tmp_path / "disk2")
    (tmp_path / "set" / "real" / "round").symlink_to(tmp_path / "set" / "real")
    scandir = os.scandir

    def closed(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    scan = scan_source("folder", tmp_path / "set")
    assert scan.manifest.path.tolist() == ["real/b.mp4", "real/more/a.mp4"]
    assert scan.rejected == [
        {"path": "fake/closed", "reason": "the folder cannot be read (Permission denied)"}
    ]


def test_given_splits_are_kept_and_drag_their_people_along():
    rows = [("a", 0, "p1", None, "test"), ("b", 1, "p2", "p1", None), ("c", 0, "p3", None, None)]
    keys = ("path", "label", "source_id", "target_id", "split")
    table = as_manifest(
        [dict(zip(keys, r, strict=True), media_id=r[0], dataset="", method="", kind="") for r in rows]
    )
    done = split_by_identity(table, rng=np.random.default_rng(1))
    assert done.split.tolist()[:2] == ["test", "test"]
    assert_no_leak(done)


@pytest.mark.parametrize("seed", range(5))
def test_no_identity_ever_crosses(seed):
    rng = np.random.default_rng(seed)
    people = [f"p{i}" for i in range(rng.integers(2, 60))]
    pairs = [rng.choice(people, 2, replace=False) for _ in range(rng.integers(1, 120))]
    rows = [{"path": f"r{p}", "label": 0, "source_id": p, "target_id": None} for p in people]
    rows += [{"path": f"f{i}", "label": 1, "source_id": s, "target_id": t} for i, (s, t) in enumerate(pairs)]
    fixed = {"dataset": "", "method": "", "split": None, "kind": "video"}
    table = as_manifest([row | fixed | {"media_id": row["path"]} for row in rows])
    done = split_by_identity(table, (0.6, 0.2, 0.2), rng)
    assert_no_leak(done)
    assert done[done.label == 0].split.notna().all()


def test_real_downloads(shared_data):
    ffpp = scan_source("ffpp", shared_data / "ffpp")
    assert sorted(ffpp.manifest.method) == ["Deepfakes", "NeuralTextures", "original", "original"]
    dfdc = scan_source("dfdc", shared_data / "dfdc")
    assert len(dfdc.manifest) == 1 and "absent" in dfdc.rejected[0]["reason"]
    swaps = scan_source("course", shared_data / "swap_stills")
    assert not swaps.rejected and swaps.manifest.target_id[swaps.manifest.label == 1].notna().all()
    assert_no_leak(swaps.manifest)
    stills = scan_source("course", shared_data / "synthetic_stills").manifest
    assert pd.crosstab(stills.split, stills.label).to_numpy().sum() == 1600
    lfw = scan_source("lfw", shared_data / "lfw").manifest
    assert len(lfw) == 300 and lfw.source_id.nunique() == 100

"""Adapters on small copies of each layout, on wrong folders, and on real media where there are any."""

import json
import os

import layouts
import numpy as np
import pandas as pd
import pytest

from deepfake_nb.data.adapters import (
    SOURCES,
    as_manifest,
    assert_no_leak,
    find_leaks,
    identity_components,
    scan_source,
    split_by_identity,
)
from deepfake_nb.study.files import InputError, UsageError


def test_ffpp_distinguishes_four_methods_that_share_file_names(tmp_path):
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


def test_ffpp_as_its_first_script_and_as_kaggle_lay_it(tmp_path):
    names = [
        "original_sequences/c23/videos/004.mp4",
        "manipulated_sequences/Deepfakes/c23/videos/004_982.mp4",
    ]
    names += [
        "original_sequences/c23/images/004/0001.png",
        "manipulated_sequences/Deepfakes/models/004_982.mp4",
    ]
    old = scan_source("ffpp", layouts.place(tmp_path / "2019", names)).manifest
    assert old.media_id.tolist() == ["Deepfakes--c23--004_982", "youtube--c23--004"]
    names = ["original/004.mp4", "Deepfakes/004_982.mp4", "FaceShifter/004_982.mp4", "csv/004.mp4"]
    names += ["DeepFakeDetection/01_02__kitchen_pan__J5BXWVCN.mp4"]
    kaggle = layouts.place(tmp_path / "archive" / "FaceForensics++_C23", names)
    layouts.ffpp_splits(kaggle)
    flat = scan_source("ffpp", kaggle).manifest.set_index("media_id")
    assert flat.label.to_dict() == {
        "DeepFakeDetection--01_02__kitchen_pan__J5BXWVCN": 1,
        "Deepfakes--004_982": 1,
        "FaceShifter--004_982": 1,
        "original--004": 0,
    }
    assert flat.loc["FaceShifter--004_982", ["source_id", "target_id", "split"]].tolist() == [
        "982",
        "004",
        "train",
    ]
    with pytest.raises(InputError, match=r"Its subfolder 'FaceForensics\+\+_C23' has it"):
        scan_source("ffpp", tmp_path / "archive")


@pytest.mark.parametrize("options", [{"compression": "c32"}, {"methods": "deepfakes"}])
def test_ffpp_the_error_for_a_filter_that_keeps_nothing_lists_what_there_is(tmp_path, options):
    with pytest.raises(UsageError, match=r"There are: .*Deepfakes c23.*original c23"):
        scan_source("ffpp", layouts.ffpp(tmp_path), options)


def test_ffpp_side_files_of_another_shape(tmp_path):
    layouts.ffpp_splits(layouts.ffpp(tmp_path))
    (tmp_path / "train.json").write_text(json.dumps([4, "982"]))  # a flat list, once as a number
    (tmp_path / "val.json").write_text(json.dumps({"071": "054"}))
    (tmp_path / "conversion_dict.json").write_text("[]")
    scan = scan_source("ffpp", tmp_path)
    assert set(scan.manifest.split[scan.manifest.path.str.contains("004_982")]) == {"train"}
    assert {row["path"] for row in scan.rejected} == {"val.json", "conversion_dict.json"}


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


def test_celeb_df_as_other_tools_leave_it(tmp_path):
    """Videos a folder deeper, frames beside them, and a list that was edited on Windows."""
    names = ["Celeb-real/videos/id0_0000.mp4", "Youtube-real/videos/00001.mp4"]
    names += ["Youtube-real/frames/00001/000.png", "Celeb-synthesis/videos/id0_id1_0000.mp4"]
    layouts.place(tmp_path, names)
    lines = [
        "\ufeff1 YouTube-real\\00001.mp4",
        "",
        "0 Celeb-synthesis/id0_id1_0000.mp4 ",
        "Celeb-real/id0_0000.mp4",
    ]
    (tmp_path / "List_of_testing_videos.txt").write_bytes("\r\n".join(lines).encode())
    scan = scan_source("celeb-df-v2", tmp_path)
    found = scan.manifest.set_index("media_id")[["label", "split"]]
    assert found.T.to_dict("list") == {
        "Celeb-real--id0_0000": [0, "train"],
        "Celeb-synthesis--id0_id1_0000": [1, "test"],
        "YouTube-real--00001": [0, "test"],
    }
    (row,) = scan.rejected
    assert row["path"] == "List_of_testing_videos.txt" and "line 4 is not 0 or 1 and a path" in row["reason"]


def test_celeb_df_official_split_leaks_and_the_identity_split_does_not(tmp_path):
    manifest = scan_source("celeb-df-v2", layouts.celeb_df(tmp_path)).manifest
    assert set(find_leaks(manifest).identity) == {"id0", "id1"}
    by_people = split_by_identity(manifest.assign(split=None), rng=np.random.default_rng(0))
    assert_no_leak(by_people)


def test_dfd_alone_in_both_of_its_layouts(tmp_path):
    kaggle = scan_source("dfd", layouts.dfd(tmp_path / "kaggle", suffix=".MP4")).manifest
    assert set(kaggle.dataset) == {"dfd"} and set(kaggle.method) == {"original", "DeepFakeDetection"}
    fake = kaggle[kaggle.path.str.contains("01_02")].iloc[0]
    assert [fake.label, fake.target_id, fake.source_id, fake.split] == [1, "actor01", "actor02", None]
    official = layouts.ffpp(tmp_path / "ffpp", compressions=("c23", "c40"))
    layouts.place(
        official, ["manipulated_sequences/DeepFakeDetection/masks/videos/01_02__kitchen_pan__J5BXWVCN.mp4"]
    )
    manifest = scan_source("dfd", official, {"compression": "c40"}).manifest
    assert manifest.media_id.tolist() == [
        "DeepFakeDetection--c40--01_02__kitchen_pan__J5BXWVCN",
        "actors--c40--01__kitchen_pan",
    ]
    assert len(scan_source("dfd", official).manifest) == 4, "neither masks nor other methods"
    with pytest.raises(
        UsageError, match="There are: DeepFakeDetection c23, DeepFakeDetection c40, actors c23"
    ):
        scan_source("dfd", official, {"compression": "c30"})
    layouts.place(tmp_path / "kaggle", ["DFD_original sequences/readme.mp4"])
    assert "<actor>__<scene>" in scan_source("dfd", tmp_path / "kaggle").rejected[0]["reason"]


@pytest.mark.parametrize("coding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_celeb_df_pp_distinguishes_its_methods(tmp_path, coding):
    layouts.celeb_df_pp(tmp_path, suffix=".MP4", coding=coding, name="LIST_OF_TESTING_VIDEOS.TXT")
    scan = scan_source("celeb-df-pp", tmp_path)
    manifest = scan.manifest
    assert scan.rejected == [] and len(manifest) == 4 + 8 and manifest.media_id.is_unique
    assert set(manifest.method) == {"original", "Celeb-DF", "SimSwap", "LivePortrait", "SadTalker"}
    tested = manifest[manifest.split == "test"]
    assert sorted(tested.method) == ["Celeb-DF", "LivePortrait", "original"]
    assert set(manifest.split) == {"train", "test"}
    swap = manifest[manifest.path.str.contains("SimSwap/id1_id2")].iloc[0]
    assert [swap.label, swap.target_id, swap.source_id] == [1, "id1", "id2"]


def test_celeb_df_pp_names_of_one_person_and_of_none(tmp_path):
    names = [
        f"Celeb-synthesis/TalkingFace/FLOAT/{name}.mp4" for name in ("id3_0001", "id3_id3_0002", "someone")
    ]
    scan = scan_source("celeb-df-pp", layouts.place(layouts.celeb_df_pp(tmp_path), names))
    of_one = scan.manifest[scan.manifest.method == "FLOAT"]
    assert of_one[["source_id", "target_id"]].values.tolist() == [["id3", None]] * 2
    assert [row["path"] for row in scan.rejected] == [names[2]]


def test_celeb_df_versions_are_not_mixed_up(tmp_path):
    layouts.celeb_df_pp(tmp_path / "++")
    layouts.celeb_df(tmp_path / "2")
    for version in ("celeb-df-v1", "celeb-df-v2"):
        with pytest.raises(InputError, match=r"holds Celeb-DF\+\+; build it as celeb-df-pp"):
            scan_source(version, tmp_path / "++")
    with pytest.raises(InputError, match="build it as celeb-df-v2"):
        scan_source("celeb-df-pp", tmp_path / "2")


def test_df40_reads_people_methods_and_splits(tmp_path):
    scan = scan_source("df40", layouts.df40(tmp_path))
    found = scan.manifest.set_index("path")
    columns = ["label", "method", "target_id", "source_id", "split"]
    expected = {
        "DF40_train/wav2lip/frames/001_870/012.png": [1, "wav2lip", "001", "870", "train"],
        "DF40/simswap/ff/frames/004_982/000.png": [1, "simswap", "004", "982", None],
        "DF40/simswap/cdf/frames/id0_id1_0003/000.png": [1, "simswap", "id0", "id1", None],
        "DF40/StyleGAN2/ff/001/seed0188.png": [1, "stylegan2", None, "001", None],
        "DF40/e4e/cdf/Celeb-real/inversions/id5_0003_001.jpg": [1, "e4e", None, "id5", None],
        "DF40/heygen/fake/7/000.png": [1, "heygen", None, "heygen/7", None],
        "DF40/heygen/real/7/000.png": [0, "original", None, "heygen/7", None],
        "DF40/starganv2/real/1007.jpg": [0, "original", None, None, None],
        "FaceForensics++/original_sequences/youtube/c23/frames/870/000.png": [
            0,
            "original",
            None,
            "870",
            None,
        ],
        "Celeb-DF-v2/Celeb-real/frames/id0_0003/000.png": [0, "original", None, "id0", None],
        "Celeb-DF-v2/YouTube-real/frames/00170/000.png": [0, "original", None, "youtube00170", None],
    }
    assert {path: found.loc[path, columns].tolist() for path in expected} == expected
    assert scan.rejected == [] and len(found) == 14


def test_df40_takes_the_split_of_ffpp_and_leaves_other_sets_alone(tmp_path):
    layouts.ffpp_splits(layouts.df40(tmp_path), train=[["001", "870"]], test=[["004", "982"]])
    layouts.place(
        tmp_path, ["FaceForensics++/manipulated_sequences/FaceSwap/c23/frames/001_870/0.png", "odd/1.png"]
    )
    layouts.place(tmp_path, ["DF40/simswap/ff/masks/004_982/000.png", "videos/simswap_test/004_982.mp4"])
    scan = scan_source("df40", tmp_path)
    found = scan.manifest.set_index("path")
    assert found.loc["DF40/simswap/ff/frames/004_982/000.png"].split == "test"
    assert found.loc["FaceForensics++/original_sequences/youtube/c23/frames/870/000.png"].split == "train"
    assert found.loc["videos/simswap_test/004_982.mp4", ["source_id", "kind"]].tolist() == ["982", "video"]
    assert len(scan.rejected) == 3 and all(
        "no folder above it is a method" in row["reason"] for row in scan.rejected
    )


def test_df40_one_method_alone(tmp_path):
    frames = layouts.place(tmp_path / "simswap", ["frames/001_870/000.png", "frames/004_982/000.png"])
    manifest = scan_source("df40", frames).manifest
    assert set(manifest.method) == {"simswap"} and manifest.target_id.tolist() == ["001", "004"]
    layouts.df40(tmp_path / "all")
    kept = scan_source("df40", tmp_path / "all", {"methods": "original,wav2lip"}).manifest
    assert set(kept.method) == {"original", "wav2lip"}
    with pytest.raises(UsageError, match=r"There are: .*simswap, stylegan2, wav2lip"):
        scan_source("df40", tmp_path / "all", {"methods": "SimSwap"})


@pytest.mark.parametrize("gap", ["_", " "])
def test_wild_deepfake_counts_a_video_as_a_person(tmp_path, gap):
    scan = scan_source("wild-deepfake", layouts.wild_deepfake(tmp_path, gap=gap))
    manifest = scan.manifest
    assert len(manifest) == 4 * 8 and manifest.media_id.is_unique and manifest.target_id.isna().all()
    assert manifest.groupby("source_id").size().to_dict() == {
        f"{label}_{split}/{video}": 4
        for label in ("fake", "real")
        for split in ("test", "train")
        for video in (1, 2)
    }
    assert manifest.label.tolist() == manifest.path.str.startswith("fake").astype(int).tolist()
    assert [(row["path"], "unpack it" in row["reason"]) for row in scan.rejected] == [
        (f"fake{gap}train/3.tar.gz", True)
    ]
    assert_no_leak(manifest)
    layouts.place(tmp_path, [f"fake{gap}train/loose.png"])
    assert "in no folder of a video" in scan_source("wild-deepfake", tmp_path).rejected[-1]["reason"]


@pytest.mark.parametrize("name", ["dfd", "celeb-df-pp", "df40", "wild-deepfake"])
def test_the_newer_sets_are_split_by_person(tmp_path, name):
    build = getattr(layouts, name.replace("-", "_"))
    manifest = scan_source(name, build(tmp_path)).manifest
    for seed in range(3):
        done = split_by_identity(manifest.assign(split=None), (0.5, 0.0, 0.5), np.random.default_rng(seed))
        assert_no_leak(done)
        assert set(done.split.dropna()) == {"train", "test"}, "a split in which nobody is tested is none"


@pytest.fixture(scope="module")
def portrait(tmp_path_factory):
    """An image of a rendered person."""
    from PIL import Image

    from deepfake_nb.people.heads import random_identity
    from deepfake_nb.people.rendering import render_stills

    path = tmp_path_factory.mktemp("portrait") / "0.png"
    Image.fromarray(render_stills([random_identity(0)], "studio", size=128).images[0]).save(path)
    return path


def test_data_check_finds_nothing_wrong_with_a_build_of_df40_by_person(tmp_path, portrait):
    from deepfake_nb.data.builds import build, check, load_manifest

    root = layouts.df40(tmp_path / "set", portrait)
    for number, path in enumerate(sorted(root.rglob("*.*g"))):
        path.write_bytes(path.read_bytes() + bytes([number]))  # no two files with the same content
    settings = {"shares": "0.5,0,0.5", "crop_size": 32}
    build("df40", root, tmp_path / "out", settings=settings, splits="identity")
    manifest = load_manifest(tmp_path / "out")
    assert check(tmp_path / "out").problems == []
    assert len(manifest) == 14 and set(manifest.split.dropna()) == {"train", "test"}
    assert_no_leak(manifest)


@pytest.mark.parametrize("coding", ["utf-16", "utf-16-be", "utf-8-sig"])
def test_official_lists_are_found_in_utf_16_and_with_upper_case_endings(tmp_path, coding):
    layouts.ffpp(tmp_path / "ffpp")
    (tmp_path / "ffpp" / "TRAIN.JSON").write_bytes(json.dumps([["004", "982"]]).encode(coding))
    assert (scan_source("ffpp", tmp_path / "ffpp").manifest.split == "train").sum() == 6
    layouts.place(tmp_path / "celeb", ["Celeb-real/id0_0000.MP4", "Celeb-synthesis/id0_id1_0000.mp4"])
    lines = "1 Celeb-real/id0_0000.mp4\r\n0 Celeb-synthesis/id0_id1_0000.MP4\r\n"
    (tmp_path / "celeb" / "List_of_testing_videos.TXT").write_bytes(lines.encode(coding))
    scan = scan_source("celeb-df-v2", tmp_path / "celeb")
    assert scan.manifest.split.tolist() == ["test", "test"] and scan.rejected == []
    layouts.place(tmp_path / "dfdc", ["part/real.MP4", "test/videos/fake.MP4"])
    entries = json.dumps({"real.mp4": {"label": "REAL"}})
    (tmp_path / "dfdc" / "part" / "METADATA.JSON").write_bytes(entries.encode(coding))
    (tmp_path / "dfdc" / "test" / "Labels.CSV").write_bytes("filename,label\nfake.mp4,1\n".encode(coding))
    scan = scan_source("dfdc", tmp_path / "dfdc")
    assert scan.manifest.path.tolist() == ["part/real.MP4", "test/videos/fake.MP4"] and scan.rejected == []
    layouts.place(tmp_path / "preview", ["original_videos/1/1_A_001.MP4"])
    entry = {"original_videos/1/1_A_001.mp4": {"label": "real", "set": "train", "target_id": 1}}
    (tmp_path / "preview" / "DATASET.JSON").write_bytes(json.dumps(entry).encode(coding))
    assert scan_source("dfdc-preview", tmp_path / "preview").manifest.source_id.tolist() == ["1"]


def test_tables_of_ones_own_in_utf_16(tmp_path):
    layouts.place(tmp_path, ["real/a.PNG", "fake/b.png"])
    lines = ["file\tsource_id\tmethod", "real/a.png\tann\t", "fake/b.png\tben\tswap"]
    (tmp_path / "INDEX.CSV").write_text("\r\n".join(lines), encoding="utf-16")
    manifest = scan_source("folder", tmp_path).manifest
    assert manifest[["method", "source_id"]].values.tolist() == [["swap", "ben"], ["original", "ann"]]
    (tmp_path / "INDEX.CSV").unlink()
    (tmp_path / "Recordings.CSV").write_text("path,label\nreal/a.png,real\n", encoding="utf-16")
    assert scan_source("zoom", tmp_path).manifest.path.tolist() == ["real/a.PNG"]


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


def test_dfdc_names_that_lead_out_and_entries_of_another_shape(tmp_path):
    layouts.place(tmp_path, ["out.mp4"])
    part = layouts.place(tmp_path / "dfdc" / "part", ["real.mp4", "word.mp4", "nan.mp4"])
    entries = {
        "real.mp4": {"label": "REAL"},
        "word.mp4": "FAKE",
        "nan.mp4": {"label": "FAKE", "original": None},
    }
    entries |= {name: {"label": "FAKE"} for name in ("../../out.mp4", str(tmp_path / "out.mp4"))}
    (part / "metadata.json").write_text(json.dumps(entries))
    scan = scan_source("dfdc", tmp_path / "dfdc")
    assert scan.manifest.path.tolist() == ["part/nan.mp4", "part/real.mp4"]
    reasons = [row["reason"] for row in scan.rejected]
    assert sum("leads out" in reason for reason in reasons) == 2
    assert sum("neither REAL nor FAKE" in reason for reason in reasons) == 1


def test_dfdc_parts_on_another_disk_and_videos_that_no_list_names(tmp_path):
    layouts.dfdc(tmp_path / "disk2", parts=("dfdc_train_part_1",))
    layouts.dfdc(tmp_path / "set", parts=("dfdc_train_part_0",))
    (tmp_path / "set" / "dfdc_train_part_1").symlink_to(tmp_path / "disk2" / "dfdc_train_part_1")
    layouts.place(tmp_path / "set", ["test_videos/aaa.mp4", "dfdc_train_part_0/frames/real/000.png"])
    (tmp_path / "set" / "dfdc_train_part_2").mkdir()
    (tmp_path / "set" / "dfdc_train_part_2" / "metadata.json").write_text("{")
    scan = scan_source("dfdc", tmp_path / "set")
    assert set(scan.manifest.path.str.split("/").str[0]) == {"dfdc_train_part_0", "dfdc_train_part_1"}
    reasons = {row["path"]: row["reason"] for row in scan.rejected}
    assert set(reasons) == {
        "dfdc_train_part_0/no.mp4",
        "dfdc_train_part_1/no.mp4",
        "dfdc_train_part_2/metadata.json",
        "test_videos/aaa.mp4",
    }
    assert "its label is unknown" in reasons["test_videos/aaa.mp4"]


@pytest.mark.parametrize("videos", ["", "videos/"])
def test_dfdc_later_sets_list_name_and_label_only(tmp_path, videos):
    layouts.place(tmp_path / "test", [videos + "a.mp4", videos + "b.mp4"])
    (tmp_path / "test" / "labels.csv").write_text("filename,label\na.mp4,0\nb.mp4,1\nc.mp4,1\n")
    scan = scan_source("dfdc", tmp_path)
    assert scan.manifest[["label", "split"]].values.tolist() == [[0, "test"], [1, "test"]]
    assert [row["path"] for row in scan.rejected] == ["test/c.mp4"]
    assert len(scan_source("dfdc", tmp_path / "test").manifest) == 2
    (tmp_path / "labels.csv").write_text("somebody,else\n")
    scan = scan_source("dfdc", tmp_path)
    assert len(scan.manifest) == 2 and "no column filename and label" in scan.rejected[0]["reason"]


def test_dfdc_preview_gives_both_people(tmp_path):
    layouts.place(tmp_path, ["original_videos/1/1_A_001.mp4", "method_B/1/1_A/2_1_A_001.mp4"])
    fake = {"label": "fake", "set": "train", "target_id": 1, "swapped_id": 2, "augmentations": []}
    real = {"label": "real", "set": "train", "target_id": 1, "swapped_id": None, "augmentations": []}
    entries = {"original_videos/1/1_A_001.mp4": real, "method_B/1/1_A/2_1_A_001.mp4": fake}
    (tmp_path / "dataset.json").write_text(json.dumps(entries | {"odd.mp4": [], "method_A/gone.mp4": fake}))
    scan = scan_source("dfdc-preview", tmp_path)
    row = scan.manifest[scan.manifest.label == 1].iloc[0]
    assert (row.source_id, row.target_id, row.method) == ("2", "1", "method_B")
    assert [row["path"] for row in scan.rejected] == ["method_A/gone.mp4", "odd.mp4"]
    (tmp_path / "dataset.json").write_text("[]")
    with pytest.raises(InputError, match=r"'dataset.json', because: holds a JSON list, not a dict"):
        scan_source("dfdc-preview", tmp_path)


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


def test_140k_faces_below_their_two_folders(tmp_path):
    names = [
        f"real_vs_fake/real-vs-fake/{s}/{x}/0.jpg"
        for s in ("train", "valid", "test")
        for x in ("real", "fake")
    ]
    layouts.place(tmp_path, names)
    (tmp_path / "train.csv").write_text(",original_path,id,label,label_str,path\n")
    manifest = scan_source("course", tmp_path).manifest
    assert manifest.label.tolist() == manifest.path.str.contains("/fake/").astype(int).tolist()
    assert manifest.split.value_counts().to_dict() == {"train": 2, "val": 2, "test": 2}


def test_openforensics_whole_images_are_distinguished_from_the_crops(tmp_path):
    layouts.place(tmp_path, ["Train/Train/a.jpg", "Train/Train_poly.json"])
    with pytest.raises(InputError, match=r"whole images on Zenodo.* is not read"):
        scan_source("openforensics", tmp_path)


def test_an_index_gives_people_and_methods(tmp_path):
    layouts.place(tmp_path, ["real/a.png", "fake/b.png", "fake/c.png", "fake/d.png"])
    lines = [
        "File,label,method,source_id,target_id",
        "./real/a.png,real,,ann,",
        "fake\\b.png,FAKE,swap,ann,ben",
    ]
    lines += ["fake/c.png,0,swap,ann,ben", "fake/d.png,1,first,,", "fake/d.png,1,second,,"]
    (tmp_path / "index.csv").write_text("\n".join(lines))
    scan = scan_source("folder", tmp_path)
    columns = ["path", "method", "source_id", "target_id"]
    assert scan.manifest[columns].values.tolist() == [
        ["fake/b.png", "swap", "ann", "ben"],
        ["fake/d.png", "first", None, None],
        ["real/a.png", "original", "ann", None],
    ]
    assert [(row["path"], "disagree" in row["reason"]) for row in scan.rejected] == [("fake/c.png", True)]
    (tmp_path / "index.csv").write_text("id,source_id\n1,ann\n")
    scan = scan_source("folder", tmp_path)
    assert len(scan.manifest) == 4 and "no column file" in scan.rejected[0]["reason"]
    (tmp_path / "index.csv").write_bytes("file,source_id\nreal/a.png,J\u00fcrgen\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"index\.csv cannot be read as a CSV table: .* Save it as UTF-8"):
        scan_source("folder", tmp_path)


def test_every_kind_of_file_that_can_be_read_is_taken(tmp_path):
    names = ["real/a.JFIF", "real/b.3gp", "fake/c.heic", "fake/d.mts", "fake/notes.txt"]
    layouts.place(tmp_path, names)
    kinds = scan_source("folder", tmp_path).manifest[["path", "kind"]].values.tolist()
    assert kinds == [
        ["fake/c.heic", "image"],
        ["fake/d.mts", "video"],
        ["real/a.JFIF", "image"],
        ["real/b.3gp", "video"],
    ]
    (tmp_path / "recordings.csv").write_text("path,label\nfake/d.mts,fake\nfake/notes.txt,fake\n")
    scan = scan_source("zoom", tmp_path)
    assert scan.manifest.path.tolist() == ["fake/d.mts"]
    assert "neither that of an image nor of a video" in scan.rejected[0]["reason"]


def test_the_combined_stills_leak_shows(tmp_path):
    names = [
        "train/real/129_1.png",
        "test/real/129_4.png",
        "test/fake/067_025_1.png",
        "train/fake/id3_id2_0001_9.png",
    ]
    manifest = scan_source("ffpp-celeb-df", layouts.place(tmp_path / "1000_videos", names).parent).manifest
    assert find_leaks(manifest).identity.tolist() == ["129"]
    assert manifest.source_id.tolist() == ["025", "129", "id2", "129"]


def test_zoom_table_refuses_what_lies_outside_and_reads_odd_names(tmp_path):
    rows = [("calls/Élodie am Abend.mp4", "real", "Élodie", ""), ("calls/b.mp4", "FAKE", "ann", "Élodie")]
    rows += [("../out.mp4", "real", "x", ""), ("/etc/passwd", "real", "x", ""), ("c.mp4", "perhaps", "x", "")]
    scan = scan_source("zoom", layouts.recordings(tmp_path, rows[:2] + rows[2:3] + rows[4:]))
    assert len(scan.manifest) == 2 and len(scan.rejected) == 2
    assert scan.manifest.media_id.str.fullmatch(r"[A-Za-z0-9_.-]+").all()
    (tmp_path / "recordings.csv").write_text("file,truth\na,b\n")
    with pytest.raises(InputError, match="no column label and path, only: file, truth"):
        scan_source("zoom", tmp_path)


def test_zoom_table_as_spreadsheets_write_it(tmp_path):
    layouts.place(tmp_path, ["a.mp4", "b.mp4", "c.mp4"])
    lines = ["\ufeffPath,Label,Split,", "a.mp4,real, Test ,", "b.mp4 ,fake,train,", "c.mp4,fake,held out,"]
    (tmp_path / "recordings.csv").write_bytes("\r\n".join(lines).encode())
    scan = scan_source("zoom", tmp_path)
    assert scan.manifest[["path", "split"]].values.tolist() == [["a.mp4", "test"], ["b.mp4", "train"]]
    assert "split 'held out' is none of train, val, test" in scan.rejected[0]["reason"]
    (tmp_path / "recordings.csv").write_text("path,label\na.mp4,real\nb, the second.mp4,fake\n")
    with pytest.raises(InputError, match=r"Expected 2 fields in line 3, saw 3\. Save"):
        scan_source("zoom", tmp_path)


def test_a_table_of_something_else_below_a_wrong_root_does_not_speak(tmp_path):
    layouts.place(tmp_path, ["holiday/beach.jpg"])
    (tmp_path / "holiday" / "costs.csv").write_text("day,cost\n1,2\n")
    with pytest.raises(InputError, match="Found: holiday/"):
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

"""A study without a network that is killed, that finds its folder taken or its disk full, or that fails.

Folders that are full or cannot be written, and a machine without a network, are made with Linux's `unshare`; where that is not
allowed those tests skip and say so.
"""

import json
import os
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
from commands import ROOT, apart, finish_study, kill_study, names_below, numbers_of, random_moments, run
from pandas.testing import assert_frame_equal

from deepfake_nb.study.files import locked_folder

KILLED = ("datasets", "frame_detectors", "latent")  # it renders, it trains networks, it keeps codes


@pytest.mark.timeout(1200)
def test_killed_three_times_and_resumed_a_study_ends_as_an_undisturbed_one(smoke_study, tmp_path):
    """Three sections, killed once in each: everything at once, or the study's process alone, with which the others have to end."""
    assert smoke_study["status"] == 0, smoke_study["errors"]
    seed = int(os.environ.get("DEEPFAKE_NB_KILL_SEED") or np.random.SeedSequence().entropy % 10**6)
    print(f"DEEPFAKE_NB_KILL_SEED={seed} kills at the same moments:")
    moments = random_moments(smoke_study["told"], KILLED, np.random.default_rng(seed))
    for number, (section, seconds) in enumerate(moments):
        print(f"{seconds:.1f} s after {section} began")
        kill_study(tmp_path, KILLED, section, seconds, everything=number != 1)
    resumed = finish_study(tmp_path, KILLED)
    assert resumed["status"] == 0, resumed["errors"]
    assert "is done already" in [state for _, _, state in resumed["told"]], "nothing was kept"
    check_same_study(tmp_path, smoke_study["out"])


def check_same_study(ours, theirs):
    """The same numbers, tables and files, nothing half written and nobody waiting."""
    for section in KILLED:
        one, other = (folder / "smoke" / section for folder in (ours, theirs))
        assert len(numbers_of(one)) > 20 and numbers_of(one) == numbers_of(other), section
        for table in other.glob("*.parquet"):
            assert_frame_equal(pd.read_parquet(one / table.name), pd.read_parquet(table), check_exact=True)
        assert names_below(one) == names_below(other), section
    assert set(names_below(ours)) <= set(names_below(theirs))
    assert not list(ours.rglob(".*.part*")) and (ours / "smoke" / "study.json").is_file()
    for lock in ours.rglob(".lock"):
        with locked_folder(lock.parent, wait=False):
            pass


CELLS = """profile: str = "smoke"  # sizes
report_folder: str = ""  # where to
how: str = "slow"  # what goes wrong
---
import time
from pathlib import Path
from deepfake_nb.study.files import write_atomically
megabyte = bytes(2**20)
if how == "atomic":
    with write_atomically(Path(report_folder) / "big.bin") as file:
        file.write(megabyte)
if how == "plain":
    (Path(report_folder) / "big.bin").write_bytes(megabyte)
if how == "broken":
    raise RuntimeError("the oven is cold")
if how == "said":
    print("#" * 2**20)
if how == "slow":
    (Path(report_folder) / "started").touch()
    time.sleep(3)
(Path(report_folder) / "results.json").write_text("[]")"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the package with a study of one small section around it."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(
        ROOT / "deepfake_nb",
        folder / "deepfake_nb",
        ignore=shutil.ignore_patterns("__pycache__", "weights_*"),
    )
    (folder / "settings.ini").touch()
    (folder / "nbs").mkdir()
    cells = [
        {"cell_type": "code", "id": f"cell-{at}", "source": source.strip(), "outputs": [], "execution_count": None}
        for at, source in enumerate(CELLS.split("---"))
    ]  # fmt: skip
    for cell, tags in zip(cells, (["parameters"], []), strict=True):
        cell["metadata"] = {"tags": tags}
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    (folder / "nbs" / "10_datasets.ipynb").write_text(json.dumps(notebook))
    return folder


def small_study(checkout, *arguments, before=()):
    code = "import sys; from deepfake_nb.cli import main; main(sys.argv[1:])"
    environment = os.environ | {"PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [*before, sys.executable, "-c", code, "study", "--profile", "smoke", *arguments]
    return run(*command, status=None, cwd=checkout, env=environment)


def on_a_disk(target, options):
    """A command before another one: `target` is a disk of its own then."""
    command = apart("--mount")
    if command is None:
        pytest.skip("this machine does not allow `unshare --user --mount`, so no disk can be filled")
    return [*command, "sh", "-c", f'mount -t tmpfs -o {options} none "{target}" && exec "$@"', "sh"]


def check_one_sentence(done, words):
    assert done.returncode == 3, done.stdout + done.stderr[-2000:]
    assert "Traceback" not in done.stderr and words in done.stderr.replace("\n", " "), done.stderr


@pytest.mark.parametrize("how", ["atomic", "plain", "said"])
def test_a_full_disk_is_a_sentence_and_no_half_report_counts(checkout, tmp_path, how):
    lasting = tmp_path / "copy"
    keep = f'; "$@"; status=$?; cp -r "{tmp_path}/disk" "{lasting}"; exit $status'
    (tmp_path / "disk").mkdir()
    before = on_a_disk(tmp_path / "disk", "size=300k")
    before[-2] = before[-2].replace(' && exec "$@"', keep)
    full = small_study(checkout, "--out", tmp_path / "disk", "--set", f"how={how}", before=before)
    check_one_sentence(full, "No space left on device")
    report = lasting / "smoke" / "datasets"
    assert report.is_dir() and not (report / "inputs.json").exists() and not list(report.glob("*.part*"))


def test_a_folder_that_cannot_be_written_is_a_sentence(checkout, tmp_path):
    done = small_study(checkout, "--out", tmp_path, before=on_a_disk(tmp_path, "ro"))
    check_one_sentence(done, "Read-only file system")


def test_a_fault_of_ours_is_a_sentence_too_and_status_1(checkout, tmp_path):
    done = small_study(checkout, "--out", tmp_path, "--set", "how=broken")
    assert (done.returncode, "Traceback" in done.stderr) == (1, False), done.stderr[-2000:]
    assert "'datasets' failed: RuntimeError: the oven is cold" in done.stderr
    assert (tmp_path / "smoke" / "datasets" / "failed.ipynb").is_file()

"""Hard knocks of the study: killed, crowded out, without disk space, without a network.

Folders that are full or cannot be written, and a machine without a network, are made with Linux's `unshare`; where that is
not allowed those tests skip and say so.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

ROOT = Path(__file__).resolve().parents[1]
STUDY = [str(Path(sys.executable).with_name("deepfake-nb")), "study", "--profile", "smoke"]
KILLS = 5


def apart(*flags):
    """The command that runs another one in namespaces of its own, or None where that is not allowed."""
    command = ["unshare", "--user", "--map-root-user", *flags]
    try:
        allowed = subprocess.run([*command, "true"], capture_output=True, timeout=20).returncode == 0
    except OSError:
        allowed = False
    return command if allowed else None


def run(command, **options):
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)


def processes_below(process):
    with psutil.Process(process.pid).oneshot():
        return [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]


def kill_after(seconds, command):
    """Start a study and kill its process, and only that, after so many seconds; what ran below it then."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(seconds)
    below = processes_below(process) if process.poll() is None else []
    process.send_signal(signal.SIGKILL)
    process.wait()
    return below


@pytest.mark.timeout(900)
def test_killed_five_times_and_resumed_a_study_ends_as_an_undisturbed_one(tmp_path):
    """The undisturbed one has no network. Killed is the study's process alone: the others have to end with it."""
    one = [*STUDY, "--section", "datasets"]
    started = time.monotonic()
    undisturbed = run([*(apart("--net") or []), *one, "--out", tmp_path])
    seconds = time.monotonic() - started
    assert undisturbed.returncode == 0, undisturbed.stderr[-2000:]
    moments = np.random.default_rng(4).uniform(0.1, 0.9, KILLS) * seconds
    for moment in moments:
        left = kill_after(moment, [*one, "--fresh"])
        _, alive = psutil.wait_procs(left, timeout=20)
        assert not alive, f"killed after {moment:.1f} s, {alive} went on"
    resumed = run(one)
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    ours, theirs = (
        json.loads((folder / "smoke" / "datasets" / "results.json").read_text())
        for folder in (ROOT / "reports", tmp_path)
    )
    assert len(ours) > 20 and ours == theirs
    assert not list((ROOT / "reports" / "smoke" / "datasets").rglob("*.part*"))


CELLS = """profile: str = "smoke"  # sizes
report_folder: str = ""  # where to
how: str = "slow"  # what goes wrong
---
import time
from pathlib import Path
from deepfake_nb.study import write_atomically
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
    return run(command, cwd=checkout, env=environment)


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


def test_a_second_study_in_the_folder_of_another_says_so(checkout, tmp_path):
    code = "import sys; from deepfake_nb.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "study", "--profile", "smoke", "--out", tmp_path]
    first = subprocess.Popen(command, cwd=checkout, env=os.environ | {"PYTHONPATH": str(checkout)})
    while not (tmp_path / "smoke" / "datasets" / "started").is_file():
        assert first.poll() is None
        time.sleep(0.05)
    second = small_study(checkout, "--out", tmp_path)
    check_one_sentence(second, "Another run is writing to")
    assert first.wait(60) == 0 and (tmp_path / "smoke" / "datasets" / "inputs.json").is_file()


def test_a_fault_of_ours_is_a_sentence_too_and_status_1(checkout, tmp_path):
    done = small_study(checkout, "--out", tmp_path, "--set", "how=broken")
    assert (done.returncode, "Traceback" in done.stderr) == (1, False), done.stderr[-2000:]
    assert "'datasets' failed: RuntimeError: the oven is cold" in done.stderr
    assert (tmp_path / "smoke" / "datasets" / "failed.ipynb").is_file()

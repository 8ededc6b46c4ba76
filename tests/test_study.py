"""Running sections: unknown names, resume, locks and files that appear whole."""

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deepfake_nb import study
from deepfake_nb.study import InputError, UsageError, write_atomically

COMMAND = [str(Path(sys.executable).with_name("deepfake-nb"))]
NOTEBOOK = {
    "cells": [
        {
            "cell_type": "code",
            "execution_count": None,
            "id": "parameters",
            "metadata": {"tags": ["parameters"]},
            "outputs": [],
            "source": 'profile: str = "smoke"  # sizes\nreport_folder: str = ""  # where to\nseed: int = 0  # of all\n',
        },
        {
            "cell_type": "code",
            "execution_count": None,
            "id": "run",
            "metadata": {},
            "outputs": [],
            "source": "from pathlib import Path\n"
            "from deepfake_nb.study import InputError, RunRecord\n"
            "if seed < 0:\n    raise InputError('The seed must be at least 0.')\n"
            "with open(Path(report_folder) / 'runs.txt', 'a') as runs:\n    runs.write('x')\n"
            "record = RunRecord('datasets', profile=profile, seed=seed)\n"
            "record.add('Table 1', 'row', 'seed', seed)\nrecord.write(report_folder)\n",
        },
    ],
    "metadata": {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}},
    "nbformat": 4,
    "nbformat_minor": 5,
}


@pytest.fixture
def small_study(tmp_path, monkeypatch):
    """A checkout with one section of two cells."""
    (tmp_path / "nbs").mkdir()
    (tmp_path / "settings.ini").touch()
    (tmp_path / "nbs" / "10_datasets.ipynb").write_text(json.dumps(NOTEBOOK))
    monkeypatch.setattr(study, "project_root", lambda: tmp_path)
    return tmp_path


def test_a_section_is_run_once_and_again_when_its_inputs_change(small_study):
    folder = small_study / "reports" / "smoke" / "datasets"
    study.run_study("smoke")
    study.run_study("smoke")
    assert (folder / "runs.txt").read_text() == "x"
    study.run_study("smoke", settings={"seed": "3"})
    assert (folder / "runs.txt").read_text() == "xx"
    assert json.loads((folder / "results.json").read_text())[0]["value"] == 3
    study.run_study("smoke", settings={"seed": "3"}, fresh=True)
    assert (folder / "runs.txt").read_text() == "xxx"


def test_unknown_names_are_refused_before_anything_runs(small_study):
    with pytest.raises(UsageError, match="no parameter 'sede'"):
        study.run_study("smoke", settings={"sede": "3"})
    with pytest.raises(UsageError, match="no profile 'large'"):
        study.run_study("large")
    with pytest.raises(InputError, match="no notebook"):
        study.run_study("smoke", ["fusion"])
    assert not (small_study / "reports").exists()


def test_a_sentence_raised_in_a_notebook_reaches_the_user(small_study):
    with pytest.raises(InputError, match="The seed must be at least 0"):
        study.run_study("smoke", settings={"seed": "-1"})
    assert not (small_study / "reports" / "smoke" / "datasets" / "inputs.json").exists()


def test_a_run_that_was_killed_is_not_taken_for_done(small_study):
    study.run_study("smoke")
    folder = small_study / "reports" / "smoke" / "datasets"
    (folder / "inputs.json").write_text('{"digest": "')
    study.run_study("smoke")
    assert (folder / "runs.txt").read_text() == "xx"


def hold(folder, held, release):
    with study.locked_folder(folder):
        held.set()
        release.wait(30)


def test_a_second_study_in_one_folder_says_so(small_study):
    folder = small_study / "reports" / "smoke"
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    process = context.Process(target=hold, args=(folder, held, release))
    process.start()
    assert held.wait(60)
    with pytest.raises(InputError, match="Another run is writing"):
        study.run_study("smoke")
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    study.run_study("smoke")


BENCHMARK = """
import multiprocessing

def work():
    return 0.5

def run(media=None):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        ours_s = pool.apply(work)
    return [dict(name="half", ours_s=ours_s, plain_s=1.0, ratio=2.0, goal="2", met=True, note=str(media))]
"""


def test_a_benchmark_may_start_processes(small_study):
    (small_study / "benchmarks").mkdir()
    (small_study / "benchmarks" / "halves.py").write_text(BENCHMARK)
    rows = study.run_benchmarks(media="a.mp4")
    assert (rows[0]["ours_s"], rows[0]["note"]) == (0.5, "a.mp4")
    with pytest.raises(UsageError, match="Choose from: halves"):
        study.run_benchmarks(["thirds"])


def limit_file_size():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))


def test_a_full_disk_leaves_nothing_half_written(tmp_path):
    code = (
        "from deepfake_nb.study import InputError, write_atomically\n"
        "try:\n"
        f"    with write_atomically({str(tmp_path / 'big.bin')!r}) as file:\n"
        "        file.write(bytes(10_000))\n"
        "except InputError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, preexec_fn=limit_file_size
    )
    assert "Cannot write" in done.stdout and "free some space" in done.stdout, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_is_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="Cannot write"), write_atomically(tmp_path / "file" / "inside.txt"):
        pass


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["study", "--profile", "large"], 2, "There is no profile 'large'"),
        (["study", "--section", "portraits"], 2, "There is no section 'portraits'"),
        (["study", "--profile", "smoke", "--set", "sede=3"], 2, "no parameter 'sede'"),
        (["study", "--set", "seed"], 2, "--set takes name=value"),
        (["bench", "nothing"], 2, "There is no benchmark 'nothing'"),
        (["nonsense"], 2, "No such command"),
    ],
)
def test_exit_status_and_sentence(arguments, status, sentence):
    done = subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    assert (done.returncode, "Traceback" in done.stderr) == (status, False), done.stderr
    assert sentence in done.stderr

"""Running sections: unknown names, resume, locks and files that appear whole."""

import errno
import fcntl
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from functools import partial
from types import ModuleType

import nbformat
import numpy as np
import pytest
from commands import allow_files_of, run, status_of

from deepfake_nb.study import files, records, runner
from deepfake_nb.study.files import InputError, UsageError, write_atomically

PARAMETERS = 'profile: str = "smoke"  # sizes\nreport_folder: str = ""  # where to\nseed: int = 0  # of all\n'
BODY = """import os, time
from pathlib import Path
from deepfake_nb.study.files import InputError, write_json
if seed < 0:
    raise InputError('The seed must be at least 0.')
started = time.time()
with open(Path(report_folder) / 'runs.txt', 'a') as runs:
    runs.write('x')
threads = int(os.environ['OMP_NUM_THREADS'])
write_json(Path(report_folder) / 'results.json', {'seed': seed, 'threads': threads})
"""


def cell(name, source, tags=()):
    about = {"metadata": {"tags": list(tags)}, "outputs": [], "execution_count": None}
    return {"cell_type": "code", "id": name, "source": source, **about}


def write_section(root, name, body=BODY):
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    content = {"cells": [cell("parameters", PARAMETERS, ["parameters"]), cell("run", body)]}
    content |= {"metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    (root / "nbs" / f"{runner.SECTIONS[name]}.ipynb").write_text(json.dumps(content))


@pytest.fixture
def small_study(tmp_path, monkeypatch):
    """A checkout with one section of two cells."""
    (tmp_path / "nbs").mkdir()
    (tmp_path / "settings.ini").touch()
    write_section(tmp_path, "datasets")
    for module in (records, runner):
        monkeypatch.setattr(module, "project_root", lambda: tmp_path)
    return tmp_path


@pytest.mark.slow
def test_a_section_is_run_once_and_again_when_its_inputs_change(small_study):
    folder = small_study / "reports" / "smoke" / "datasets"
    runner.run_study("smoke")
    runner.run_study("smoke")
    assert (folder / "runs.txt").read_text() == "x"
    runner.run_study("smoke", settings={"seed": "3"})
    assert (folder / "runs.txt").read_text() == "xx"
    assert json.loads((folder / "results.json").read_text())["seed"] == 3
    (folder / "inputs.json").write_text('{"digest": "')
    told = []
    runner.run_study("smoke", settings={"seed": "3"}, tell=lambda *words: told.append(words[:2]))
    assert told == [("datasets", "starts"), ("datasets", "done")]


LOOKS_FOR_COST = """
from deepfake_nb.study.files import write_json
there = (Path(report_folder).parent / 'study.json').is_file()
write_json(Path(report_folder) / 'cost.json', there)
"""


@pytest.mark.slow
def test_what_a_study_cost_is_said_of_the_run_that_computed_it(small_study):
    """Killed between its last section and `study.json`, a study has only sections that are done already."""
    reports = small_study / "reports" / "smoke"
    write_section(small_study, "datasets", BODY + LOOKS_FOR_COST)
    runner.run_study("smoke", jobs=1)
    cost = json.loads((reports / "study.json").read_text())
    assert (cost["sections"], cost["kept"], cost["failed"]) == (["datasets"], [], []) and cost["seconds"] > 0
    runner.run_study("smoke")
    assert json.loads((reports / "study.json").read_text()) == cost
    (reports / "study.json").unlink()
    runner.run_study("smoke")
    unknown = json.loads((reports / "study.json").read_text())
    assert (unknown["sections"], unknown["kept"], unknown["profile"]) == ([], ["datasets"], "smoke")
    assert {unknown[name] for name in ("seconds", "peak_memory_gib", "jobs", "cores")} == {None}
    runner.run_study("smoke", fresh=True)
    assert json.loads((reports / "datasets" / "cost.json").read_text()) is False, "it told of an older run"
    assert json.loads((reports / "study.json").read_text())["sections"] == ["datasets"]


def test_a_study_wants_a_section_at_once(small_study):
    for jobs in (0, -1):
        with pytest.raises(UsageError, match=f"jobs is {jobs}"):
            runner.run_study("smoke", jobs=jobs)
    assert not (small_study / "reports").exists()


WRITE_FOR_EVER = """
import sys, time
from deepfake_nb.study.files import atomic_path
with atomic_path(sys.argv[1]) as outer, atomic_path(outer) as inner:
    inner.write_bytes(b'half of')
    print('writing', flush=True)
    time.sleep(60)
"""


def write_for_ever(path):
    """A process that writes a file and does not end; a path within a path, as where a film is written into one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen([sys.executable, "-c", WRITE_FOR_EVER, path], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"writing\n"
    return process


@pytest.mark.slow
def test_a_study_removes_what_killed_writers_left_and_nothing_else(small_study, monkeypatch):
    cache = small_study / "cache"
    monkeypatch.setenv("DEEPFAKE_NB_CACHE", str(cache))
    dead, alive = (write_for_ever(cache / name / "a film\nof 1.mp4") for name in ("dead", "alive"))
    try:
        dead.kill()
        dead.wait()
        theirs = cache / ".theirs.part"
        theirs.touch()
        assert len(list(cache.rglob(".*.part*"))) == 3
        runner.run_study("smoke")
        left = sorted(path.parent.name for path in cache.rglob(".*.part*"))
        assert left == ["alive", "cache"] and theirs.is_file()
    finally:
        alive.kill()
        alive.wait()
    assert len(files.remove_half_written(cache)) == 1
    assert files.remove_half_written(small_study / "no such folder") == []


def test_a_file_taken_away_before_it_was_locked_is_made_again(tmp_path, monkeypatch):
    """What another process does between both steps, done here as the first lock is asked for."""
    locked, asked = fcntl.flock, []

    def sweep_first(file, how):
        if not asked:
            asked.append(os.fstat(file.fileno()).st_nlink)
            next(tmp_path.glob(".*.part*")).unlink()
        locked(file, how)

    monkeypatch.setattr(fcntl, "flock", sweep_first)
    with files.atomic_path(tmp_path / "a.txt") as path:
        assert files.remove_half_written(tmp_path) == []
        path.write_text("whole")
    assert asked == [1] and [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_disk_without_locks_is_written_and_never_swept(tmp_path, monkeypatch):
    def refuse(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with files.atomic_path(tmp_path / "a.txt") as path:
        path.write_text("whole")
        assert files.remove_half_written(tmp_path) == []
    assert (tmp_path / "a.txt").read_text() == "whole"
    with pytest.raises(InputError, match=r"Cannot lock .* No locks available"), files.locked_folder(tmp_path):
        pass


@pytest.mark.parametrize("fields", [{"value": float("nan")}, {"value": 0.5, "low": np.float32("-inf")}])
def test_a_number_that_no_report_can_hold_is_refused_with_its_place(fields):
    record = records.RunRecord("latent", "smoke")
    with pytest.raises(ValueError, match=r"\('Table 1', 'MesoNet', 'AUC'\) is -?(nan|inf)\. Give None"):
        record.add("Table 1", "MesoNet", "AUC", **fields)
    record.add("Table 1", "MesoNet", "AUC", None, note="one class")
    assert len(record.results) == 1


def digest_of(run):
    return runner.inputs_digest(run.notebook, run.parameters, run.read)


def test_a_digest_covers_what_the_notebook_reads_and_what_the_package_ships(small_study, monkeypatch):
    run = runner.check_section("datasets", "smoke")
    before = digest_of(run)
    monkeypatch.setattr(runner, "READS_REPORTS", ("datasets",))
    (small_study / "reports" / "smoke" / "fusion").mkdir(parents=True)
    absent = digest_of(runner.check_section("datasets", "smoke"))
    (small_study / "reports" / "smoke" / "fusion" / "inputs.json").write_text("{}")
    there = digest_of(runner.check_section("datasets", "smoke"))
    assert len({before, absent, there}) == 3
    package = small_study / "deepfake_nb"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.setitem(sys.modules, "deepfake_nb", ModuleType("deepfake_nb"))
    sys.modules["deepfake_nb"].__file__ = str(package / "__init__.py")
    without = digest_of(run)
    (package / "weights.safetensors").write_bytes(b"1")
    assert len({before, without, digest_of(run)}) == 3


def test_unknown_names_are_refused_before_anything_runs(small_study):
    with pytest.raises(UsageError, match="no parameter 'sede'"):
        runner.run_study("smoke", settings={"sede": "3"})
    with pytest.raises(UsageError, match="no profile 'large'"):
        runner.run_study("large")
    with pytest.raises(InputError, match="no notebook"):
        runner.run_study("smoke", ["fusion"])
    write_section(small_study, "fusion")
    text = (small_study / "nbs" / "30_fusion.ipynb").read_text()
    (small_study / "nbs" / "30_fusion.ipynb").write_text(text.replace("seed: int", "grain: int"))
    with pytest.raises(UsageError, match=r"30_fusion.ipynb has no parameter 'seed'"):
        runner.run_study("smoke", settings={"seed": "3"})
    assert not (small_study / "reports").exists()


MEETING = """
others = [Path(report_folder).parent / name / 'runs.txt' for name in ('fusion', 'latent')]
while not all(other.is_file() for other in others) and time.time() < started + 60:
    time.sleep(.05)
assert all(other.is_file() for other in others)
from deepfake_nb.study.files import locked_folder
with locked_folder(Path(report_folder).parent / 'a set that both need'):
    time.sleep(.3)
"""


@pytest.mark.slow
def test_sections_of_a_stage_run_side_by_side_with_a_share_of_the_cores(small_study, monkeypatch):
    """Each waits for the other: one after the other they would fail. Then both want the same folder at once."""
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name in ("fusion", "latent"):
        write_section(small_study, name, BODY + MEETING)
    told = []
    runner.run_study("smoke", jobs=2, tell=lambda *words: told.append(words[:2]))
    assert told[:2] == [("datasets", "starts"), ("datasets", "done")]
    assert {state for _, state in told[2:4]} == {"starts"} and {state for _, state in told[4:]} == {"done"}
    reports = small_study / "reports" / "smoke"
    threads = [
        json.loads((reports / s / "results.json").read_text())["threads"] for s in ("datasets", "fusion")
    ]
    assert threads == [6, 3]
    about = json.loads((reports / "study.json").read_text())
    assert about["peak_memory_gib"] > 0.05 and about["failed"] == []


@pytest.mark.slow
def test_a_failure_is_a_sentence_and_the_other_sections_are_run(small_study):
    write_section(small_study, "fusion", "raise RuntimeError('the oven is cold')")
    write_section(small_study, "latent", "import os\nos._exit(9)")
    write_section(small_study, "leaderboard")
    with pytest.raises(runner.StudyFailure) as failure:
        runner.run_study("smoke", jobs=2)
    words = str(failure.value)
    assert (
        "'fusion' failed: RuntimeError: the oven is cold" in words and "'latent' failed: DeadKernel" in words
    )
    reports = small_study / "reports" / "smoke"
    assert json.loads((reports / "study.json").read_text())["failed"] == ["fusion", "latent"]
    done = [name for name in runner.SECTIONS if (reports / name / "inputs.json").is_file()]
    assert done == ["datasets", "leaderboard"]


@pytest.mark.slow
def test_a_sentence_raised_in_a_notebook_reaches_the_user(small_study):
    files.write_json(small_study / "reports" / "smoke" / "datasets" / "results.json", [])
    with pytest.raises(InputError, match="'datasets' failed: The seed must be at least 0"):
        runner.run_study("smoke", settings={"seed": "-1"})
    assert not list((small_study / "reports" / "smoke" / "datasets").glob("*.json"))


def hold(folder, held, release):
    with files.locked_folder(folder):
        held.set()
        release.wait(30)


@pytest.mark.slow
def test_a_second_study_in_one_folder_says_so(small_study):
    folder = small_study / "reports" / "smoke"
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    process = context.Process(target=hold, args=(folder, held, release))
    process.start()
    assert held.wait(60)
    with pytest.raises(InputError, match="Another run is writing"):
        runner.run_study("smoke")
    threading.Timer(0.5, release.set).start()
    started = time.monotonic()
    with files.locked_folder(folder, wait=True):
        assert time.monotonic() - started > 0.3
    process.join()


BENCHMARK = """
import multiprocessing

def work():
    return 0.5

def run(media=None):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        ours_s = pool.apply(work)
    return [dict(name="half", ours_s=ours_s, plain_s=1.0, ratio=2.0, goal="2", met=True, note=str(media))]
"""


def test_a_benchmark_may_start_processes_and_one_that_breaks_stops_no_other(small_study):
    (small_study / "benchmarks").mkdir()
    (small_study / "benchmarks" / "broken.py").write_text("def run(media=None):\n    return [1 / 0]")
    (small_study / "benchmarks" / "halves.py").write_text(BENCHMARK)
    broken, halved = runner.run_benchmarks(media="a.mp4")
    assert (halved["ours_s"], halved["note"]) == (0.5, "a.mp4")
    assert (broken["met"], broken["ratio"]) == (False, None) and "division by zero" in broken["note"]
    with pytest.raises(UsageError, match="Choose from: broken, halves"):
        runner.run_benchmarks(["thirds"])


def test_a_full_disk_leaves_nothing_half_written(tmp_path):
    code = (
        "from deepfake_nb.study.files import InputError, write_atomically\n"
        "try:\n"
        f"    with write_atomically({str(tmp_path / 'big.bin')!r}) as file:\n"
        "        file.write(bytes(10_000))\n"
        "except InputError as error:\n"
        "    print(error)\n"
    )
    done = run(sys.executable, "-c", code, preexec_fn=partial(allow_files_of, 1000))
    assert "Cannot write" in done.stdout and "free some space" in done.stdout, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_nobody_wrote_does_not_appear(tmp_path):
    with pytest.raises(InputError, match="nothing was written"), files.atomic_path(tmp_path / "a.txt"):
        pass
    assert list(tmp_path.iterdir()) == []
    with files.atomic_path(tmp_path / "empty.txt") as path:
        path.write_bytes(b"")
    assert (tmp_path / "empty.txt").read_bytes() == b"" and (tmp_path / "empty.txt").stat().st_mtime > 1e9


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
def test_exit_status_and_sentence(arguments, status, sentence, capsys):
    assert status_of(*arguments) == status
    said = " ".join(capsys.readouterr().err.split())
    assert sentence in said and "Traceback" not in said


@pytest.mark.slow
def test_figures_are_in_the_executed_notebook_for_any_backend(tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    cell = nbformat.v4.new_code_cell("import matplotlib.pyplot as plt\nplt.plot([1, 2])")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "drawing.ipynb")
    runner.execute_notebook(tmp_path / "drawing.ipynb", tmp_path / "executed.ipynb")
    outputs = nbformat.read(tmp_path / "executed.ipynb", as_version=4).cells[-1].outputs
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert os.environ["MPLBACKEND"] == "agg"


def test_the_table_of_all_does_not_wait_for_sections_beyond_the_papers(small_study):
    for name in ("self_blending", "pretrained_encoder", "leaderboard"):
        write_section(small_study, name)
    read = runner.check_section("leaderboard", "smoke").read
    assert [path.parent.name for path in read] == [
        "datasets",
        "frame_detectors",
        "fusion",
        "altfreezing",
        "latent",
    ]
    assert set(runner.BEYOND_THE_PAPERS) < set(runner.SECTIONS)


def test_a_section_is_run_again_when_a_detector_left_predictions(small_study):
    write_section(small_study, "pretrained_encoder")
    digests = [digest_of(runner.check_section("pretrained_encoder", "smoke"))]
    kept = small_study / "reports" / "detectors" / "edited-faces" / "predictions.csv"
    kept.parent.mkdir(parents=True)
    for content in ("media,score", "media,score,label"):
        kept.write_text(content)
        digests.append(digest_of(runner.check_section("pretrained_encoder", "smoke")))
    assert len(set(digests)) == 3

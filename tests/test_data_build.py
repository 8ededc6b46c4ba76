"""Builds that are killed, disturbed, given bad media, a full disk, a cluster, or a changed mind."""

import ast
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from importlib.util import find_spec, resolve_name
from pathlib import Path

import layouts
import numpy as np
import pandas as pd
import psutil
import pytest
from commands import allow_files_of, run

from deepfake_nb.data.builds import FaceSet, build, check, load_manifest
from deepfake_nb.data.stills import select_training_rows, select_validation_rows
from deepfake_nb.sections import filming
from deepfake_nb.sections.filming import MAKERS, Camera, shoot, shoot_stills
from deepfake_nb.sections.paper_sets import make_paper_set, render_sets
from deepfake_nb.study import workers
from deepfake_nb.study.files import InputError, UsageError
from deepfake_nb.study.provenance import code_behind

SMALL = {"crop_size": 32, "detect_every": 5}


@pytest.fixture(scope="session")
def heads(tmp_path_factory):
    """Four short videos and two images of rendered people."""
    return layouts.talking_heads(tmp_path_factory.mktemp("heads"))


@pytest.fixture
def media(tmp_path, heads):
    """The plain layout with two real and two fake videos, below a name that is not plain at all."""
    root = tmp_path / "média set"
    for number, label in enumerate(("real", "real", "fake", "fake")):
        (root / label).mkdir(parents=True, exist_ok=True)
        shutil.copy(heads / f"{number}.mp4", root / label / f"clip {number}é.mp4")
    return root


def track_states(out):
    return {path.name: path.stat().st_mtime_ns for path in (Path(out) / "tracks").iterdir()}


def run_build(root, out):
    """`build` in a process of its own, as a command would run it."""
    code = (
        "import sys; from deepfake_nb.data.builds import build\n"
        f"report = build('folder', sys.argv[1], sys.argv[2], settings={SMALL!r}, jobs=1)\n"
        "print(report.built, report.kept)"
    )
    return run(sys.executable, "-c", code, root, out)


def test_a_build_holds_what_it_says(media, tmp_path):
    report = build("folder", media, tmp_path / "out", settings=SMALL)
    assert (report.built, report.kept, report.rejected) == (4, 0, 0)
    manifest = load_manifest(tmp_path / "out")
    assert manifest.label.sum() == 2 and (manifest.n_frames == 12).all()
    faces = FaceSet(tmp_path / "out")
    assert faces.still(0).shape == (32, 32, 3) and len(faces.clips(0, length=4)) == 3
    assert not check(tmp_path / "out").problems
    assert pd.read_csv(tmp_path / "out" / "manifest.csv").media_id.tolist() == manifest.media_id.tolist()
    assert json.loads((tmp_path / "out" / "build.json").read_text())["counts"]["files"] == 4


@pytest.mark.slow
def test_jobs_and_order_change_no_byte(media, tmp_path):
    build("folder", media, tmp_path / "one", settings=SMALL)
    build("folder", media, tmp_path / "two", settings=SMALL, jobs=2)
    for name in ("manifest.parquet", "manifest.csv", "rejected.csv"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_bad_media_are_rejected_and_the_rest_goes_on(media, heads, tmp_path):
    whole = (heads / "0.mp4").read_bytes()
    bad = {"empty.mp4": b"", "text.mp4": b"this is no video\n" * 50, "cut.mp4": whole[: len(whole) // 3]}
    bad |= {"broken.jpg": b"\xff\xd8\xff\xe0 broken", "text.png": b"no picture"}
    for name, content in bad.items():
        (media / "fake" / name).write_bytes(content)
    from PIL import Image

    Image.new("RGB", (64, 64), "grey").save(media / "real" / "wall.png")
    Image.new("RGB", (1, 1)).save(media / "real" / "dot.png")
    shutil.copy(heads / "0.png", media / "real" / "good.png")
    (media / "elsewhere.png").write_bytes(b"")
    report = build("folder", media, tmp_path / "out", settings=SMALL)
    assert report.built == 5
    reasons = pd.read_csv(tmp_path / "out" / "rejected.csv").set_index("path").reason
    assert set(reasons.index) == {
        *(f"fake/{name}" for name in bad),
        "real/wall.png",
        "real/dot.png",
        "elsewhere.png",
    }
    assert "no face" in reasons["real/wall.png"]
    assert reasons.str.len().min() > 10 and not reasons.str.contains("unexpected").any()


def test_a_file_that_cannot_be_opened_is_rejected(media, tmp_path, monkeypatch):
    real_open = open

    def closed(path, *arguments, **named):
        if str(path).endswith("0é.mp4"):
            raise PermissionError(13, "Permission denied", str(path))
        return real_open(path, *arguments, **named)

    monkeypatch.setattr("deepfake_nb.study.files.open", closed, raising=False)
    report = build("folder", media, tmp_path / "out", settings=SMALL)
    assert report.built == 3 and "Permission denied" in report.rejects.reason[0]


@pytest.mark.slow
def test_kill_and_resume_give_the_undisturbed_build(media, heads, tmp_path):
    for number in range(4, 12):
        shutil.copy(heads / f"{number % 4}.mp4", media / "real" / f"more {number}.mp4")
    run_build(media, tmp_path / "calm")
    code = f"from deepfake_nb.data.builds import build; build('folder', {str(media)!r}, 'out', settings={SMALL!r})"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, start_new_session=True)
    journal = tmp_path / "out" / "journal.jsonl"
    deadline = time.time() + 60
    while not (journal.is_file() and journal.read_text().count("\n") >= 2):
        assert process.poll() is None and time.time() < deadline, "the build ended before it could be killed"
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out" / "manifest.parquet").exists()
    with pytest.raises(InputError, match="no finished build"):
        check(tmp_path / "out")
    done = {json.loads(line)["media_id"] for line in journal.read_text().splitlines() if line.endswith("}")}
    before = track_states(tmp_path / "out")
    (tmp_path / "out" / "tracks" / ".half.1.ab.part.safetensors").write_bytes(b"half")
    built, kept = map(int, run_build(media, tmp_path / "out").stdout.split())
    assert kept == len(done) >= 2 and built + kept == 12
    after = track_states(tmp_path / "out")
    assert all(after[f"{media_id}.safetensors"] == before[f"{media_id}.safetensors"] for media_id in done)
    for name in ("manifest.parquet", "manifest.csv", "rejected.csv"):
        assert (tmp_path / "calm" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    assert sorted(after) == sorted(track_states(tmp_path / "calm"))


def test_only_what_changed_is_done_again(media, heads, tmp_path):
    out = tmp_path / "out"
    build("folder", media, out, settings=SMALL)
    before = track_states(out)
    assert (r := build("folder", media, out, settings=SMALL)).built == 0 and r.kept == 4
    assert build("folder", media, out, settings={**SMALL, "seed": 5}, splits="identity").built == 0
    shutil.copy(heads / "3.mp4", media / "real" / "clip 0é.mp4")
    assert build("folder", media, out, settings=SMALL).built == 1
    changed = [name for name, state in track_states(out).items() if before[name] != state]
    assert len(changed) == 1
    next((out / "tracks").iterdir()).write_bytes(b"damaged")
    assert build("folder", media, out, settings=SMALL).built == 1
    assert build("folder", media, out, settings={**SMALL, "crop_size": 48}).built == 4
    assert FaceSet(out).still(0).shape == (48, 48, 3)
    (media / "real" / "clip 0é.mp4").unlink()
    assert (r := build("folder", media, out, settings={**SMALL, "crop_size": 48})).kept == 3 and len(
        r.manifest
    ) == 3


def test_a_second_build_into_the_folder_is_refused(media, tmp_path):
    from deepfake_nb.study.files import locked_folder

    with locked_folder(tmp_path / "out"), pytest.raises(InputError, match="Another run is writing"):
        build("folder", media, tmp_path / "out", settings=SMALL)
    assert build("folder", media, tmp_path / "out", settings=SMALL).built == 4


def test_a_wrong_root_leaves_no_folder_behind(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="does not look like"):
        build("ffpp", tmp_path / "empty", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_usage_errors(media, tmp_path):
    for change, words in (
        ({"settings": {"colour": "red"}}, "no build setting 'colour'"),
        ({"splits": "frames"}, "neither official nor identity"),
        ({"limit": 0}, "at least 1"),
        ({"settings": {"shares": "1,2"}}, "add up to 1"),
        ({"settings": {"frame_stride": "0"}}, "at least 1"),
        ({"settings": {"max_frames": "-1"}}, "max_frames must be at least 0"),
        ({"settings": {"threshold": "1.5"}}, "between 0 and 1"),
        ({"jobs": 0}, "jobs must be at least 1"),
    ):
        with pytest.raises(UsageError, match=words):
            build("folder", media, tmp_path / "out", **change)
    for change in (
        {"splits": "frames"},
        {"settings": {"shares": "1,2"}},
        {"settings": {"shares": "nan,0,1"}},
    ):
        with pytest.raises(UsageError):
            build("rendered", tmp_path / "made", tmp_path / "out", makers=MAKERS, **change)
    assert not (tmp_path / "made").exists()  # told before anything is rendered
    with pytest.raises(UsageError, match="no set 'ff'"):
        make_paper_set("ff", "smoke")


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_full_disk_stops_with_a_sentence_and_leaves_no_half_file(media, tmp_path, jobs):
    out = tmp_path / "out"
    if run("mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", _made(out), status=None).returncode:
        pytest.skip("needs the right to mount a tiny tmpfs")
    try:
        with pytest.raises(InputError, match=r"No space left|Cannot write"):
            build("folder", media, out, settings={**SMALL, "crop_size": 112}, jobs=jobs)
        assert not list(out.rglob("*.part*"))
        finished = {json.loads(line)["media_id"] for line in (out / "journal.jsonl").read_text().splitlines()}
        assert {path.stem for path in (out / "tracks").glob("*.safetensors")} >= finished
    finally:
        run("umount", "-l", out)


def _made(folder):
    folder.mkdir()
    return folder


def test_a_file_size_limit_stops_too(media, tmp_path):
    code = f"from deepfake_nb.data.builds import build; build('folder', {str(media)!r}, 'out', settings={SMALL!r})"
    limit = partial(allow_files_of, 20_000)
    done = run(sys.executable, "-c", code, cwd=tmp_path, status=1, preexec_fn=limit)
    assert "InputError: Cannot write" in done.stderr and "File too large" in done.stderr
    assert not list((tmp_path / "out" / "tracks").iterdir())


def test_limits_balance_labels_and_identity_splits_hold(heads, tmp_path):
    root = layouts.ffpp(tmp_path / "ff", heads / "0.mp4")
    report = build(
        "ffpp", root, tmp_path / "out", limit=6, splits="identity", settings={**SMALL, "max_frames": 3}
    )
    assert report.manifest.label.value_counts().to_dict() == {0: 3, 1: 3}
    assert report.leaking == 0 and (report.manifest.n_frames == 3).all()
    report = build(
        "ffpp",
        root,
        tmp_path / "two",
        limit=2,
        settings={**SMALL, "frame_stride": 5, "limit_order": "sorted"},
    )
    assert report.manifest.n_frames.tolist() == [3, 3]


def test_check_finds_every_kind_of_damage(media, tmp_path):
    out = tmp_path / "out"
    build("folder", media, out, settings=SMALL)
    sound = pd.read_parquet(out / "manifest.parquet")

    def problems_of(**changes):
        changed = sound.copy()
        for column, values in changes.items():
            changed[column] = values
        changed.to_parquet(out / "manifest.parquet", index=False)
        return " | ".join(check(out).problems)

    assert problems_of() == ""
    assert "lies outside the media folder" in problems_of(path=["../../etc/passwd", *sound.path[1:]])
    with pytest.raises(InputError, match="refused"):
        load_manifest(out)
    assert "lies outside the build folder" in problems_of(tracks=["/etc/passwd", *sound.tracks[1:]])
    assert "neither 0 (real) nor 1 (fake)" in problems_of(label=[2, 0, 1, 1])
    assert "the same media_id is labelled real and fake" in problems_of(media_id=["a", "b", "a", "c"])
    assert "the same content is labelled real and fake" in problems_of(media_sha256=["a", "b", "a", "c"])
    assert "the same content stands in" in problems_of(
        media_sha256=["a", "a", "b", "c"], split=["train", "test"] * 2
    )
    assert "p stands in test, train" in problems_of(
        source_id=["p", "p", None, None], split=["train", "test"] * 2
    )
    assert problems_of(label=[1, 1, 1, 1]) == "" and "fake files only" in " ".join(check(out).warnings)
    problems_of()
    track = next((out / "tracks").iterdir())
    content = bytearray(track.read_bytes())
    content[-1] ^= 1
    track.write_bytes(content)
    assert "checksum differs" in " ".join(check(out).problems)
    track.unlink()
    assert "is absent" in " ".join(check(out).problems)
    (out / "manifest.parquet").write_bytes(b"not a table")
    with pytest.raises(InputError, match="cannot be read"):
        check(out)


def test_a_build_of_nothing_usable_is_no_sound_build(tmp_path):
    layouts.place(tmp_path / "set", ["real/a.png", "fake/b.png"], b"no picture")
    report = build("folder", tmp_path / "set", tmp_path / "out", settings=SMALL)
    assert (len(report.manifest), report.rejected) == (0, 2)
    assert len(FaceSet(tmp_path / "out")) == 0
    found = check(tmp_path / "out")
    assert found.counts.empty and found.problems == ["it holds no usable media file; rejected.csv says why"]


def test_a_damaged_journal_costs_its_damaged_lines(media, tmp_path):
    build("folder", media, tmp_path / "out", settings=SMALL)
    journal = tmp_path / "out" / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(lines[0] + b"\xff\xfe{" + lines[1] + b"[]\n" + b"".join(lines[2:]))
    report = build("folder", media, tmp_path / "out", settings=SMALL)
    assert (report.built, report.kept) == (1, 3)


def test_progress_counts_what_is_done(media, tmp_path):
    class Progress:
        total = done = 0

        def add_task(self, description, total):
            self.total += total
            return description

        def advance(self, task, steps=1):
            self.done += steps

    progress = Progress()
    build("folder", media, tmp_path / "out", settings=SMALL, progress=progress)
    assert progress.total == progress.done == 4


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A Dask scheduler and a worker as processes of their own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder, address = tmp_path_factory.mktemp("dask"), f"tcp://127.0.0.1:{port}"
    dask = [sys.executable, "-m", "dask"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    options = {"cwd": folder, "env": environment, "stderr": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    scheduler = subprocess.Popen([*dask, "scheduler", "--port", str(port), "--no-dashboard"], **options)
    worker = subprocess.Popen(
        [*dask, "worker", address, "--nworkers", "1", "--nthreads", "1", "--no-dashboard"], **options
    )
    import distributed

    try:
        with distributed.Client(address, timeout=40, set_as_default=False) as client:
            client.wait_for_workers(1, timeout=40)
        yield address
    finally:
        for process in (worker, scheduler):
            process.kill()
        for process in (worker, scheduler):
            process.wait(20)


def test_a_cluster_gives_the_same_build(media, tmp_path, cluster):
    build("folder", media, tmp_path / "here", settings=SMALL)
    report = build("folder", media, tmp_path / "there", settings=SMALL, scheduler=cluster)
    assert report.built == 4
    assert (tmp_path / "here" / "manifest.parquet").read_bytes() == (
        tmp_path / "there" / "manifest.parquet"
    ).read_bytes()


def test_a_cancelled_build_leaves_the_cluster_empty(media, heads, tmp_path, cluster):
    for number in range(12):
        shutil.copy(heads / f"{number % 4}.mp4", media / "real" / f"more {number}.mp4")

    class Impatient:
        def add_task(self, description, total):
            return None

        def advance(self, task, steps=1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build("folder", media, tmp_path / "out", settings=SMALL, scheduler=cluster, progress=Impatient())
    import distributed

    with distributed.Client(cluster, timeout=10, set_as_default=False) as client:
        deadline = time.time() + 20
        while (
            left := client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks))
        ) and time.time() < deadline:
            time.sleep(0.1)
        assert left == 0
    assert len((tmp_path / "out" / "journal.jsonl").read_text().splitlines()) == 1
    assert build("folder", media, tmp_path / "out", settings=SMALL).kept >= 1


def test_no_cluster_at_an_address(media, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="No Dask scheduler answers"):
        build("folder", media, tmp_path / "out", settings=SMALL, scheduler="tcp://127.0.0.1:9")


def test_a_dead_worker_gets_a_sentence(monkeypatch):
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    def dying():
        yield {"media_id": "a"}
        raise TerminatedWorkerError("killed")

    results = workers._living(dying())
    assert next(results) == {"media_id": "a"}
    with pytest.raises(InputError, match="fewer --jobs"):
        next(results)


def test_workers_end_with_the_process_that_started_them(tmp_path):
    """Killed in the middle of long tasks, so that nobody can tell them."""
    asking = tmp_path / "asking.py"
    asking.write_text(
        "import time\nfrom deepfake_nb.study.workers import worker_pool\n"
        "if __name__ == '__main__':\n    with worker_pool(time.sleep, 2) as run:\n        list(run([600, 600]))\n"
    )
    process = subprocess.Popen([sys.executable, asking], stderr=subprocess.DEVNULL)
    deadline, below = time.time() + 60, []
    while len([p for p in below if "loky" in " ".join(p.cmdline())]) < 2 and time.time() < deadline:
        time.sleep(0.2)
        below = psutil.Process(process.pid).children(recursive=True)
    time.sleep(2)  # until they are at work
    process.kill()
    process.wait()
    _, left = psutil.wait_procs(below, timeout=30)
    for orphan in left:
        orphan.kill()
    assert len(below) >= 2 and not left


def modules_behind(name, without):
    """Modules of the package that a module imports, itself and what these import included."""
    source = Path(find_spec(name).origin).read_text()
    imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    package = name.rpartition(".")[0]
    named = {resolve_name("." * node.level + node.module, package) for node in imports}
    named = {module for module in named if module.startswith("deepfake_nb.")}
    return {name}.union(*(modules_behind(other, without) for other in named - without))


def test_a_set_is_rendered_anew_when_any_code_that_makes_it_changes():
    """But for the random streams of `study`, names of real files, generator and portraits, which few sets need."""
    apart = {"study.files", "study.workers", "data.adapters", "learning.generator", "people.portraits"}
    behind = modules_behind("deepfake_nb.sections.filming", {f"deepfake_nb.{name}" for name in apart})
    reached = {name.rpartition(".")[0] for name in code_behind(shoot, shoot_stills, Camera)}
    assert behind <= reached


@pytest.mark.slow
def test_sets_rendered_side_by_side_are_those_rendered_alone(tmp_path):
    names = ("cross-stills", "openforensics")
    render_sets(names, "smoke", 0, tmp_path / "together", jobs=2)
    for name in names:
        together = make_paper_set(name, "smoke", 0, tmp_path / "together").manifest
        alone = make_paper_set(name, "smoke", 0, tmp_path / "alone").manifest
        pd.testing.assert_frame_equal(together, alone)
        assert together.media_sha256.nunique() == len(together)


def test_published_validation_is_a_part_of_training():
    rows = [{"path": f"{label}/{i}", "label": label, "split": "train", "source_id": f"p{i}", "target_id": None,
             "media_id": f"{label}{i}"} for label in (0, 1) for i in range(10)]  # fmt: skip
    table = pd.DataFrame(rows)
    published = select_validation_rows(table, "published")
    assert published.sum() == 10 and set(table[published].path.str[2:].astype(int)) == {0, 1, 2, 3, 4}
    stated = select_validation_rows(table, "stated", rng=np.random.default_rng(0))
    assert 0 < stated.sum() < 10
    assert not set(table[stated].source_id) & set(table[~stated].source_id)


@pytest.mark.parametrize("seed", range(5))
def test_nobody_is_in_training_and_in_validation(seed):
    rng = np.random.default_rng(seed)
    people = [f"p{number:02d}" for number in rng.permutation(24)]
    rows = [("train", 0, person, None) for person in people]
    rows += [("train", 1, source, target) for source, target in zip(people, np.roll(people, 1), strict=True)]
    rows += [("test", 0, "q0", None), ("test", 1, "q0", "q1")]
    table = pd.DataFrame(rows, columns=["split", "label", "source_id", "target_id"])
    table["media_id"] = table["path"] = [f"file{number:02d}" for number in range(len(table))]
    validated = select_validation_rows(table, rng=rng)
    learnt = select_training_rows(table, validated)
    seen = [{*table.source_id[rows], *table.target_id[rows].dropna()} for rows in (validated, learnt)]
    assert seen[0] and seen[1] and not seen[0] & seen[1]
    crossing = (table.split == "train") & ~validated & ~learnt
    assert crossing.any() and (table.label[crossing] == 1).all()
    assert not learnt[table.split == "test"].any()


@pytest.mark.slow
def test_lfw_is_swapped_within_splits(shared_data, tmp_path):
    report = build(
        "lfw", shared_data / "lfw", tmp_path / "out", limit=16, settings={"crop_size": 64}, makers=MAKERS
    )
    assert report.manifest.label.value_counts().to_dict() == {0: 8, 1: 8}
    assert report.leaking == 0 and not check(tmp_path / "out").problems
    fakes = report.manifest[report.manifest.label == 1]
    assert (fakes.source_id != fakes.target_id).all()
    assert (
        again := build(
            "lfw", shared_data / "lfw", tmp_path / "out", limit=16, settings={"crop_size": 64}, makers=MAKERS
        )
    ).built == 0
    assert again.kept == 16


def test_real_media(shared_data, tmp_path):
    settings = {"max_frames": 10, "crop_size": 64}
    report = build("ffpp", shared_data / "ffpp", tmp_path / "ff", settings=settings)
    assert report.built == 4 and report.leaking == 0 and not check(tmp_path / "ff").problems
    report = build("dfdc", shared_data / "dfdc", tmp_path / "dfdc", settings=settings)
    assert report.built == 1 and report.rejected == 1


@pytest.mark.slow
def test_real_recordings_are_swapped_into_a_set(shared_data, tmp_path):
    from deepfake_nb.sections.filming import swap_ffpp

    sizes = {"train": (50, 50), "val": (10, 10)}
    rejected = swap_ffpp(shared_data / "ffpp", tmp_path / "media", tmp_path / "masks", sizes, max_frames=8)
    report = build("ffpp", tmp_path / "media", tmp_path / "out", settings=SMALL)
    assert not rejected and report.manifest.label.tolist() == [1, 1, 0, 0]
    assert (report.manifest.n_frames == 8).all() and report.leaking == 0


@pytest.mark.parametrize("flat", [False, True])
def test_who_is_swapped_in_ffpp(tmp_path, flat):
    """Sequences, not actors, each once, at c23 where that is there; from any layout."""
    if flat:
        layouts.place(tmp_path, ["original/004.mp4", "original/982.mp4", "original/01__kitchen_pan.mp4"])
    else:
        layouts.ffpp(tmp_path, pairs=(("004", "982"),), compressions=("c40", "c23", "raw"))
    chosen = filming._ffpp_originals(tmp_path, {"train": (2, 2)}, seed=0)
    assert chosen.source_id.tolist() == ["004", "982"]
    assert flat or chosen.path.str.contains("/c23/").all()


@pytest.mark.slow
def test_rendered_people_are_a_source_of_their_own(tmp_path):
    settings = {**SMALL, "frames": 4}
    report = build(
        "rendered", tmp_path / "media", tmp_path / "out", limit=4, settings=settings, makers=MAKERS
    )
    assert report.manifest.label.tolist() == [1, 1, 0, 0] and report.leaking == 0
    assert (report.manifest.n_frames == 4).all()
    again = build("rendered", tmp_path / "media", tmp_path / "out", limit=4, settings=settings, makers=MAKERS)
    assert (again.built, again.kept) == (0, 4)
    fewer = build(
        "rendered", tmp_path / "media", tmp_path / "fewer", limit=2, settings=settings, makers=MAKERS
    )
    assert sorted(fewer.manifest.label) == [0, 1]

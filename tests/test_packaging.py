"""One list of requirements, and a wheel that works with no source tree around it."""

import ast
import importlib
import json
import os
import re
import shutil
import sys
import sysconfig
import venv
from configparser import ConfigParser
from importlib import metadata
from importlib.util import resolve_name
from pathlib import Path

import pytest
from commands import BIN, ROOT, run
from PIL import Image

from deepfake_nb.people.heads import random_identity
from deepfake_nb.people.rendering import render_stills
from deepfake_nb.scoring.score import SMALL


def settings():
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


def requirements():
    return {*settings()["requirements"].split(), *settings()["dev_requirements"].split()}


def project_name(requirement):
    return re.match(r"[A-Za-z0-9._-]+", requirement)[0].lower().replace("_", "-")


def test_environment_lists_the_requirements_of_settings():
    listed = re.findall(r'^ {6}- "(.+)"$', (ROOT / "environment.yml").read_text(), flags=re.M)
    assert set(listed) == requirements()


def test_every_requirement_is_pinned_once():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line.split("==")[0].lower().replace("_", "-") for line in lines if line and line[0] != "#"]
    assert len(pins) == len(set(pins))
    missing = {project_name(requirement) for requirement in requirements()} - set(pins)
    assert not missing, f"constraints.txt does not pin {missing}"


def test_the_gpu_script_carries_pinned_wheels():
    script = ROOT / "scripts" / "gpu_study.sh"
    run("bash", "-n", script)
    carried = re.search(r'^CARRIED="(.*?)"', script.read_text(), re.M | re.S)[1].split()
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {project_name(line) for line in lines if line and line[0] != "#"}
    assert len(carried) > 30 and not {project_name(name) for name in carried} - pins
    assert "Options of run" in run(script, "run", "wheels", "--nonsense", "1", status=2).stdout


def test_installed_metadata_has_the_requirements_of_settings():
    declared = metadata.metadata("deepfake-nb").get_all("Requires-Dist")
    plain = {re.sub(r"\s*;.*", "", line).replace(" ", "") for line in declared if "extra" not in line}
    names = {project_name(line) for line in plain}
    assert names == {project_name(line) for line in settings()["requirements"].split()}
    assert metadata.version("deepfake-nb") == settings()["version"]


ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def answer(*command, **options):
    return run(*command, env=ENVIRONMENT, **options)


@pytest.fixture(scope="module")
def installed_wheel(tmp_path_factory):
    """An empty environment with only the wheel in it; its dependencies are found where this one has them."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(
        ROOT / "deepfake_nb", source / "deepfake_nb", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("setup.py", "settings.ini", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    answer(sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", folder, source, cwd=folder)
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    install = ("-m", "pip", "--python", python, "install", "--no-deps", next(folder.glob("*.whl")))
    answer(sys.executable, *install, cwd=folder)
    site = answer(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).stdout
    (Path(site.strip()) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python.parent


@pytest.mark.slow
def test_wheel_works_without_the_source_tree(installed_wheel, tmp_path):
    command = installed_wheel / "deepfake-nb"
    code = "import deepfake_nb; print(deepfake_nb.__file__)"
    where = answer(installed_wheel / "python", "-c", code, cwd=tmp_path)
    assert str(ROOT) not in where.stdout, where
    version = answer(command, "--version", cwd=tmp_path)
    assert version.stdout.strip() == f"deepfake-nb {settings()['version']}", version.stderr
    assert "score" in answer(command, "--help", cwd=tmp_path).stdout
    assert "not here (installed package)" in answer(command, "info", cwd=tmp_path).stdout
    assert "Clone the repository" in answer(command, "study", cwd=tmp_path, status=3).stderr


@pytest.mark.slow
def test_the_wheel_brings_the_trained_networks(installed_wheel):
    (installed,) = installed_wheel.parent.glob("lib/*/site-packages/deepfake_nb")
    shipped = [path.relative_to(ROOT) for path in (ROOT / "deepfake_nb").rglob("*.safetensors")]
    assert len(shipped) > 5
    for path in shipped:
        assert (installed.parent / path).read_bytes() == (ROOT / path).read_bytes(), path


NO_NETWORK = """
import socket, sys

def refuse(*_, **__):
    raise AssertionError("somebody used the network")

socket.socket.connect = socket.socket.connect_ex = socket.socket.sendto = refuse
socket.getaddrinfo = socket.create_connection = socket.gethostbyname = refuse
from deepfake_nb.cli import main
main(["score", *sys.argv[1:]])
"""


@pytest.mark.slow
def test_the_wheel_scores_an_image_without_a_network_and_a_cache(installed_wheel, tmp_path, monkeypatch):
    """Away from the source tree."""
    monkeypatch.setitem(ENVIRONMENT, "DEEPFAKE_NB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(ENVIRONMENT, "HOME", str(tmp_path))
    picture = render_stills([random_identity(1)], "studio", size=256).images[0]
    Image.fromarray(picture).save(tmp_path / "picture.png")
    command = [installed_wheel / "python", "-c", NO_NETWORK, "picture.png"]
    done = answer(*command, "--json", "verdict.json", "--report", "report", cwd=tmp_path)
    (verdict,) = json.loads((tmp_path / "verdict.json").read_text())
    assert 0 <= verdict["score"] <= 1 and "real people" in verdict["trained_on"]
    assert verdict["detector"] == SMALL[0] and verdict["weights"]
    assert f"was trained on: {verdict['trained_on']}." in done.stdout, "this is said on every run"
    assert done.stdout.count("weights fetch clip-vit-b16") == 1
    assert "<html" in (tmp_path / "report" / "index.html").read_text(encoding="utf-8")


def test_help_is_quick():
    """In seconds of the processor: a busy machine may take longer."""
    before = os.times()
    run(BIN / "deepfake-nb", "--help")
    after = os.times()
    taken = after.children_user + after.children_system - before.children_user - before.children_system
    assert taken < 1, taken


def test_command_line_imports_nothing_heavy():
    heavy = {"torch", "cv2", "pandas", "numpy", "av", "sklearn", "scipy"}
    loaded = run(sys.executable, "-c", "import sys, deepfake_nb.cli; print(*sys.modules)").stdout.split()
    assert "typer" in loaded and not heavy & set(loaded)


@pytest.mark.parametrize(
    "short, full",
    {
        "faces": "media.faces",
        "score": "scoring.score",
        "weights": "networks.weights",
        "metrics": "evaluation.metrics",
    }.items(),
)
def test_short_paths_give_the_same_objects(short, full):
    short, full = (importlib.import_module(f"deepfake_nb.{name}") for name in (short, full))
    assert short.__all__ and all(getattr(short, name) is getattr(full, name) for name in full.__all__)


FOLDERS = "study media networks data people evaluation learning detectors sections scoring".split()


def test_a_folder_uses_only_those_before_it():
    package = ROOT / "deepfake_nb"
    for place, folder in enumerate(FOLDERS):
        for path in (package / folder).glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom):
                    name = resolve_name("." * node.level + node.module, f"deepfake_nb.{folder}")
                    if name.startswith("deepfake_nb."):
                        assert name.split(".")[1] in FOLDERS[: place + 1], f"{path.name} imports {name}"

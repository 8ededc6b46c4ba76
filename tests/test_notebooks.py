"""The notebooks are the source of truth: clean, exported, and each runs in a process of its own."""

import filecmp
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from commands import BIN, ROOT, run

from deepfake_nb.study.records import SECTIONS
from deepfake_nb.study.runner import section_parameters

NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
SECTION_NOTEBOOKS = [
    f"{name}.ipynb" for name in SECTIONS.values()
]  # test_site.py looks at how the study ran them
ON_YOUR_MEDIA = ["70_score.ipynb", "02_camera.ipynb", "75_report.ipynb"]
WITH_PARAMETERS = [path for path in NOTEBOOKS if path.name in SECTION_NOTEBOOKS + ON_YOUR_MEDIA]


@pytest.fixture
def copy_of_checkout(tmp_path):
    for name in ("settings.ini", "pyproject.toml", "setup.py", "README.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("nbs", "deepfake_nb"):
        shutil.copytree(
            ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
        )
    return tmp_path


def different_files(left, right, pattern):
    names = {path.name for folder in (left, right) for path in folder.glob(pattern)}
    same, *_ = filecmp.cmpfiles(left, right, names, shallow=False)
    return sorted(names - set(same))


def test_package_is_what_the_notebooks_export(copy_of_checkout):
    for module in (copy_of_checkout / "deepfake_nb").glob("*.py"):
        if module.name != "__init__.py":
            module.unlink()
    run(BIN / "nbdev_export", cwd=copy_of_checkout)
    run(sys.executable, "-m", "ruff", "format", "--quiet", "deepfake_nb", cwd=copy_of_checkout)
    changed = different_files(copy_of_checkout / "deepfake_nb", ROOT / "deepfake_nb", "*.py")
    assert not changed, f"run `make export`: {changed} differ from what the notebooks say"


def test_notebooks_are_clean(copy_of_checkout):
    run(sys.executable, "-m", "ruff", "format", "--quiet", "nbs", cwd=copy_of_checkout)
    run(BIN / "nbdev_clean", cwd=copy_of_checkout)
    changed = different_files(copy_of_checkout / "nbs", ROOT / "nbs", "*.ipynb")
    assert not changed, f"run `make export`: {changed} hold marks of a run"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_holds_no_outputs(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells), "run `make export`"


def test_linter_and_formatter_pass():
    folders = ("nbs", "deepfake_nb", "tests", "benchmarks", "scripts", "docs")
    run(sys.executable, "-m", "ruff", "check", *folders, cwd=ROOT)
    run(sys.executable, "-m", "ruff", "format", "--check", *folders, cwd=ROOT)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_says_where_it_exports_to(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    exports = any(source.lstrip().startswith("#| export") for source in sources)
    named = any(source.lstrip().startswith("#| default_exp ") for source in sources)
    assert named or not exports, (
        f"{notebook.name} exports cells but has no `#| default_exp`: nbdev drops them"
    )


@pytest.mark.parametrize("notebook", WITH_PARAMETERS, ids=lambda path: path.stem)
def test_section_parameters_are_commented_literals(notebook):
    parameters = section_parameters(notebook)
    assert parameters["profile"][0] == "smoke"
    assert all(comment for _, comment in parameters.values()), parameters


class NotebookServer:
    """The process of `notebook_server.py`, started when it is needed and killed with a notebook that runs too long."""

    process = None

    def run(self, notebook, output, environment):
        """The exit status of the process that ran a notebook."""
        if self.process is None:
            command = [sys.executable, "-P", ROOT / "tests" / "notebook_server.py"]
            streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            environment_of_all = os.environ | {"MPLBACKEND": "agg"}
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment_of_all, start_new_session=True, **streams
            )
        request = {"notebook": str(notebook), "output": str(output), "environment": environment}
        try:
            print(json.dumps(request), file=self.process.stdin, flush=True)
            return self.process.stdout.readline().strip()
        except BaseException:
            self.end()
            raise

    def end(self):
        """Kill the process and the notebook that it runs."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.communicate()
            self.process = None


@pytest.fixture(scope="module")
def notebook_server():
    server = NotebookServer()
    yield server
    server.end()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "notebook", [path for path in NOTEBOOKS if path.name not in SECTION_NOTEBOOKS], ids=lambda path: path.stem
)
def test_notebook_runs(notebook, notebook_server, tmp_path):
    said, environment = tmp_path / "said.txt", {"DEEPFAKE_NB_CACHE": str(tmp_path / "cache")}
    status = notebook_server.run(notebook, said, environment)
    assert status == "0", f"{notebook.name} ended with status {status}:\n{said.read_text()[-5000:]}"

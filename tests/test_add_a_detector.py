"""The guide "Add a detector", followed to the letter."""

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deepfake_nb.cli import app
from deepfake_nb.networks import weights

GUIDE = Path(__file__).parents[1] / "docs" / "guides" / "add_a_detector.md"
BLOCKS = re.findall(r"^```(python|bash)\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """What the page's blocks leave behind: names, what each block said, and the folder."""
    folder, said, names = tmp_path_factory.mktemp("guide"), [], {"__name__": "guide"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for language, block in BLOCKS:
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                if language == "python":
                    exec(compile(block, str(GUIDE), "exec"), names)
                else:
                    print(*map(run, block.splitlines()))
            said.append(printed.getvalue())
        yield names, said, folder
    weights.REGISTRY.pop("lcnet")


def run(line):
    """What a command of the page prints."""
    program, *arguments = shlex.split(line)
    assert program == "deepfake-nb"
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_page_is_one_cell_and_one_line():
    python = [block for language, block in BLOCKS if language == "python"]
    assert sum("save_network(" in block for block in python) == 1
    (line,) = [line for block in python for line in block.splitlines() if line.startswith("REGISTRY")]
    assert line == 'REGISTRY["lcnet"] = own_weights("lcnet", "lcnet.safetensors")'


def test_the_detector_of_the_guide_is_trained_and_gives_verdicts(followed):
    names, _, folder = followed
    log = names["trainer"].log.records
    assert log[-1]["train_loss"] < log[0]["train_loss"]
    assert len(set(names["predictions"].score.round(6))) > 12
    verdict = names["verdict"]
    assert verdict.detector == "lcnet" and verdict.trained_on == names["words"]
    assert verdict.verdict == "abstain" and "Not calibrated" in verdict.reason and 0 <= verdict.score <= 1
    assert (folder / "lcnet.safetensors").stat().st_size < 3e6


def test_the_commands_say_what_the_page_says(followed):
    names, said, _ = followed
    checked, spoken, evaluated = said[1], said[3], said[5]
    assert "frame-network" in checked and "a toy" in checked
    assert names["verdict"].verdict in spoken and "a toy" in spoken
    assert "AUC" in evaluated and "24" in evaluated

"""Two processes that train together end as one with the doubled batch, and hold the same weights in each step."""

import json
from pathlib import Path

import numpy as np
import pytest
import test_freezing
import test_training
from commands import in_two_processes

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

SCRIPT = """
import json, sys
sys.path.insert(0, {tests!r})
import test_freezing, test_training

test_training.torch.set_num_threads(1)
found = {{
    "plain": test_training.run_of_processes(4, {folder!r}),
    "freezing": test_freezing.run_of_processes(2),
}}
if found["plain"]["first"] and found["freezing"]["first"]:
    json.dump(found, open({folder!r} + "/found.json", "w"))
"""


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    """What the first of two processes found, started once for both tests."""
    folder = tmp_path_factory.mktemp("two")
    script = folder / "two.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent), folder=str(folder)))
    in_two_processes(script)
    return json.loads((folder / "found.json").read_text())


def test_two_processes_equal_one_with_the_doubled_batch(of_two):
    two, one = of_two["plain"], test_training.run_of_processes(8, None)
    assert (one["processes"], two["processes"]) == (1, 2)
    for ours, theirs in zip(one["records"], two["records"], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    for name in ("logits", "weights"):
        np.testing.assert_allclose(one[name], two[name], rtol=0, atol=1e-5)


def test_two_processes_hold_the_same_group(of_two):
    two, one = of_two["freezing"], test_freezing.run_of_processes(4)
    assert (one["processes"], two["processes"]) == (1, 2)
    assert one["still"] == two["still"] == [["long.0.weight"], ["long.0.weight"], ["wide.0.weight"]] * 2
    np.testing.assert_allclose(one["weights"], two["weights"], rtol=0, atol=1e-5)
    assert one["auc"] == two["auc"]

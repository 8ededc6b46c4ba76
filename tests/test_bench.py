"""Benchmarks on the command line: every file of the folder is one, and what they measured is a table and JSON."""

import ast
import json

import pytest
from commands import ROOT, status_of

from deepfake_nb.study import records, runner

BENCHMARKS = sorted((ROOT / "benchmarks").glob("*.py"))
FAST = """
def run(media=None):
    return [dict(name="fast", ours_s=0.5, plain_s=1.0, ratio=2.0, goal="ratio >= 1", met=True, note=f"on {media}"),
            dict(name="slow", ours_s=4.0, plain_s=1.0, ratio=0.25, goal="ratio >= 1", met=False, note="alas")]
"""


@pytest.fixture
def two_benchmarks(tmp_path, monkeypatch):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "made_up.py").write_text(FAST)
    (tmp_path / "benchmarks" / "shaky.py").write_text("def run(media=None):\n    return [1 / 0]")
    for module in (records, runner):
        monkeypatch.setattr(module, "project_root", lambda: tmp_path)
    return tmp_path


def test_rows_of_all_benchmarks_are_one_table_and_json(two_benchmarks, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    out = two_benchmarks / "rows.json"
    assert status_of("bench", "--json", out, "--media", "a.mp4") == 0
    said = capsys.readouterr().out
    assert "fast: on a.mp4" in said and said.count("\nBenchmarks ") == 1
    table = said.split("\nBenchmarks ")[1].splitlines()
    assert [line.split() for line in table if line.startswith(("fast", "slow"))] == [
        ["fast", "0.5", "1", "2", "ratio", ">=", "1", "met"],
        ["slow", "4", "1", "0.25", "ratio", ">=", "1", "NOT", "met"],
    ]
    rows = json.loads(out.read_text())
    assert [row["name"] for row in rows] == ["fast", "slow", "shaky"]
    assert rows[-1]["ratio"] is None and "division by zero" in rows[-1]["note"] and not rows[-1]["met"]


def test_one_benchmark_can_be_chosen(two_benchmarks, capsys):
    assert status_of("bench", "shaky") == 0 and "fast" not in capsys.readouterr().out
    assert status_of("bench", "absent") == 2 and "made_up, shaky" in capsys.readouterr().err


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_every_benchmark_says_what_it_measures_and_takes_a_file(path):
    code = ast.parse(path.read_text(encoding="utf-8"))
    functions = {node.name: node for node in code.body if isinstance(node, ast.FunctionDef)}
    assert [argument.arg for argument in functions["run"].args.args] == ["media"], (
        "bench calls run(media=None)"
    )
    assert ast.get_docstring(functions["run"]) and f"deepfake-nb bench {path.stem}" in ast.get_docstring(code)

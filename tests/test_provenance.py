"""Digests of code: what changes them, and what does not."""

import importlib
import itertools
import sys

import pytest

from deepfake_nb.study.provenance import code_behind, digest_code

FIRST = "from .second import LIMIT, helper\n\n\ndef entry(x):\n    return helper(x) + LIMIT\n"
SECOND = "LIMIT = 3\nUNUSED = 4\n\n\ndef helper(x):\n    return 2 * x\n"
NUMBERS = itertools.count()  # definitions are read once per name of a module


@pytest.fixture
def digest_of(tmp_path, monkeypatch):
    """Digest of the function `entry` of a package that consists of some modules."""
    monkeypatch.syspath_prepend(tmp_path)
    made = []

    def digest(**modules):
        name = f"made_package_{next(NUMBERS)}"
        made.append(name)
        (tmp_path / name).mkdir()
        for module, text in {"__init__": "", **modules}.items():
            (tmp_path / name / f"{module}.py").write_text(text)
        importlib.invalidate_caches()
        return digest_code(importlib.import_module(f"{name}.first").entry)

    yield digest
    for module in [module for module in sys.modules if module.startswith(tuple(made))]:
        del sys.modules[module]


@pytest.mark.parametrize(
    ("old", "new", "counts"),
    [
        ("2 * x", "3 * x", True),
        ("LIMIT = 3", "LIMIT = 5", True),
        ("UNUSED = 4", "UNUSED = 5", False),
        ("    return 2 * x", '    """Twice x."""\n    return 2*x  # as said', False),
        ("LIMIT = 3\n", "LIMIT = 3\nLIMIT += 1\n", True),
    ],
)
def test_what_a_function_uses_counts_and_nothing_else(digest_of, old, new, counts):
    before, after = (digest_of(first=FIRST, second=text) for text in (SECOND, SECOND.replace(old, new)))
    assert (before != after) == counts


def test_a_definition_may_move(digest_of):
    before = digest_of(first=FIRST, second=SECOND)
    moved = FIRST.replace(
        "from .second import LIMIT, helper", "from .third import helper\nfrom . import second"
    )
    third = "def helper(x):\n    return 2 * x\n"
    assert digest_of(first=FIRST.replace(".second", ".third"), third=SECOND) == before
    assert digest_of(first=moved.replace("+ LIMIT", "+ second.LIMIT"), second=SECOND, third=third) != before
    inside = "def entry(x):\n    from .second import LIMIT, helper\n\n    return helper(x) + LIMIT\n"
    assert digest_of(first=inside, second=SECOND) == before


def test_an_attribute_of_a_module_is_followed(digest_of):
    first = "from . import second\n\n\ndef entry(x):\n    return second.helper(x)\n"
    before, after = (digest_of(first=first, second=text) for text in (SECOND, SECOND.replace("2 *", "3 *")))
    assert before != after


def test_what_is_patched_into_a_class_belongs_to_it(digest_of):
    first = "class Counter:\n    pass\n\n\ndef entry():\n    return Counter()\n\n\n"
    patched = "def patch(f):\n    return f\n\n\n@patch\ndef count(self: Counter):\n    return 1\n"
    texts = (first, first + patched, first + patched.replace("1", "2"), first + "Counter.limit = 3\n")
    assert len({digest_of(first=text) for text in texts}) == 4


def test_circles_end_and_other_packages_are_not_followed():
    names = code_behind(code_behind)
    assert "deepfake_nb.study.provenance.list_references" in names and all(
        name.startswith("deepfake_nb.") for name in names
    )

"""Fixtures shared by the tests: where the real media lie, if this machine has any."""

import os
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]


def shared_folder(name: str) -> Path:
    """A folder of real media or parity fixtures; the test skips, saying so, where it is absent."""
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

"""Where the contract tests find recordings of real devices."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def snmprec_folder() -> Path:
    """Recordings of real PDUs; they lie beside the repository, not in it."""
    folder = Path(os.environ.get("RPI_SHARED", ROOT.parent / "shared")) / "data" / "snmprec"
    if not folder.is_dir():
        pytest.skip("needs the recordings in ../shared/data/snmprec, or RPI_SHARED")
    return folder

"""What every test gets: one torch thread, its own cache and run folders, the real metadata."""

import os
from collections.abc import Iterator
from pathlib import Path

# Before torch or a notebook's kernel starts: two workers on two cores must not fight for them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch
from lab import NO_CHROMIUM, chromium

from handclip_lib import params

torch.set_num_threads(1)

TEST_DATA = "HANDCLIP_TEST_DATA"
NO_TEST_DATA = (
    f"{TEST_DATA} names no folder with HandInfo_full.csv (the real 11k Hands metadata)"
    " and 11k_sample/ (some of its photographs)"
)


def _test_data() -> Path | None:
    told = os.environ.get(TEST_DATA, "")
    folder = Path(told).expanduser()
    return folder.resolve() if told and (folder / "HandInfo_full.csv").is_file() else None


def pytest_report_header() -> list[str]:
    """Say at the top what is not there, and so not tested; a silent skip looks like a pass."""
    lost = "NOT THERE, its tests are skipped: "
    return [
        f"real 11k metadata: {_test_data() or lost + NO_TEST_DATA}",
        f"Chromium: {chromium() or lost + NO_CHROMIUM}",
    ]


@pytest.fixture(scope="session", autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Caches and run folders of this test run lie in a temporary folder, also for subprocesses."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HANDCLIP_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HANDCLIP_REPORTS", str(tmp_path_factory.mktemp("reports")))
        yield


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder named by $HANDCLIP_TEST_DATA; without it the test is skipped, with the reason."""
    found = _test_data()
    if found is None:
        pytest.skip(NO_TEST_DATA)
    return found


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's root."""
    return params.ROOT

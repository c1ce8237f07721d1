"""Figures for the summary of a run, and what all tests share."""

import gc
import os
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest

FIGURES = pytest.StashKey[Counter]()


def pytest_configure(config):
    config.stash[FIGURES] = Counter()


def pytest_collection_finish():
    # The thousands of tests themselves are nothing to look for garbage among.
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session):
    output = getattr(session.config, "workeroutput", None)
    if output is not None:  # one of several processes, whose figures are summed up
        output["figures"] = dict(session.config.stash[FIGURES])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    node.config.stash[FIGURES].update(node.workeroutput["figures"])


@pytest.fixture(scope="session")
def figures(request):
    """Counts by name, shown in the summary."""
    return request.config.stash[FIGURES]


@pytest.fixture(autouse=True)
def _closed_indexes():
    yield
    rig = sys.modules.get("tests.support.rig")  # not imported for tests that need none
    if rig is not None:
        rig.close_indexes()


@pytest.fixture(scope="session")
def soak():
    """Whether the long forms are to run (`make soak`)."""
    return os.environ.get("STOR_SOAK") == "1"


@pytest.fixture
def quick_path(tmp_path):
    """A directory for thousands of small files: in memory if there is enough."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or shutil.disk_usage(memory).free < 512 * 1024 * 1024:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as path:
        yield Path(path)


def pytest_terminal_summary(terminalreporter):
    figures = terminalreporter.config.stash[FIGURES]
    if figures:
        terminalreporter.section("figures")
        for what, number in sorted(figures.items()):
            terminalreporter.write_line(f"{number:8} {what}")

"""Processes that end with the tests that started them, and which tests share one of pytest."""

import hashlib
import itertools
import os
import signal

import attrs
import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.engines.ceph import Ceph
from tests.engines.memcached import Memcached
from tests.engines.swift import Swift
from tests.integration.process import Stor

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what runs in the background like that, and every program would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

#: Each takes many seconds to start, and the files whose tests need one begin like this.
ENGINES = {"swift", "ceph"}
WITH_ENGINES = ("test_beyond_one_machine", "test_engines", "test_metrics", "test_s3_")


class OneProcessForEngines(LoadScopeScheduling):
    """All tests that need an engine go to one process, first, and each other one to any.

    Marks (`xdist_group`) do not reach the scheduler with every pytest:
    https://github.com/pytest-dev/pytest-xdist/issues/1386
    """

    def _split_scope(self, nodeid):
        file = nodeid.partition("::")[0].rpartition("/")[2]
        return "engines" if file.startswith(WITH_ENGINES) else nodeid


def pytest_xdist_make_scheduler(config, log):
    return OneProcessForEngines(config, log)


def pytest_collection_modifyitems(items):
    """Those that need an engine are in files that say so."""
    for item in items:
        # By name as a fixture, or as the parameter of one.
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
        needs = {*item.fixturenames, *(value for value in parameters if isinstance(value, str))}
        if needs & ENGINES and not item.path.name.startswith(WITH_ENGINES):
            raise pytest.UsageError(f"{item.path} needs an engine: name it in WITH_ENGINES")


@attrs.frozen
class BigFile:
    """A file with its name as a sample."""

    path: object
    sha: str
    size: int


@pytest.fixture
def start(tmp_path):
    """Start a Stor: `start(max_upload_bytes=5)`. All are stopped, and held to a clean log."""
    yield from _starting(_configured_below(tmp_path))


@pytest.fixture
def start_with(tmp_path):
    """Start a Stor with these arguments in the test's directory: `start_with("stor", port=1)`."""

    def make(*arguments, port, **variables):
        return Stor(tmp_path, port, list(map(str, arguments)), **variables)

    yield from _starting(make)


@pytest.fixture(scope="module")
def start_in_module(tmp_path_factory):
    """Like `start`, for the tests of a whole file."""
    yield from _starting(_configured_below(tmp_path_factory.mktemp("stor")))


@pytest.fixture(scope="module")
def stor(start_in_module):
    """One Stor for all the tests of a file, which leave each other alone and put files on disks."""
    return start_in_module(index=False)


@pytest.fixture(scope="session")
def big_file(tmp_path_factory):
    """120 MB of random bytes."""
    path = tmp_path_factory.mktemp("big") / "file"
    hasher = hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(120):
            piece = os.urandom(1_000_000)
            hasher.update(piece)
            file.write(piece)
    yield BigFile(path, hasher.hexdigest(), 120_000_000)
    path.unlink()


@pytest.fixture(scope="session")
def swift(tmp_path_factory):
    """OpenStack Swift on one node."""
    with Swift(tmp_path_factory.mktemp("engines") / "swift") as engine:
        yield engine


@pytest.fixture(scope="session")
def ceph(tmp_path_factory):
    """Ceph on three nodes."""
    with Ceph(tmp_path_factory.mktemp("engines") / "ceph", nodes=3) as engine:
        yield engine


@pytest.fixture(scope="session")
def memcached(tmp_path_factory):
    """A memcached for all tests; a test that breaks one has its own."""
    with Memcached(tmp_path_factory.mktemp("engines") / "memcached") as server:
        yield server


def _configured_below(directory):
    numbers = itertools.count()
    return lambda **keys: Stor.configured(directory / f"stor{next(numbers)}", **keys)


def _starting(make):
    started = []

    def start(*arguments, **keys):
        stor = make(*arguments, **keys)
        started.append(stor)
        return stor

    yield start
    try:
        for stor in started:
            stor.stop()
    finally:
        for stor in started:
            stor.remove()

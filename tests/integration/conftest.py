"""Processes that end with the tests that started them, and which tests share a process."""

import hashlib
import itertools
import os
import signal

import attrs
import pytest

from tests.engines.ceph import Ceph
from tests.engines.memcached import Memcached
from tests.engines.swift import Swift
from tests.integration.process import Stor

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what runs in the background like that, and every program would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

#: Each takes many seconds to start.
ENGINES = {"swift", "ceph"}


def names(item):
    """The fixtures and the parameters of a test."""
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return {*item.fixturenames, *(value for value in parameters if isinstance(value, str))}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """One process runs a file, and one all files that need an engine (`--dist=loadgroup`)."""
    files = {item.path for item in items if ENGINES & names(item)}
    for item in items:
        group = "engines" if item.path in files else item.path.name
        item.add_marker(pytest.mark.xdist_group(group))


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

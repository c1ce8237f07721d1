"""Processes that end with the test that started them."""

import hashlib
import itertools
import os

import attrs
import pytest

from tests.integration.process import Stor


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
    """One Stor for all the tests of a file, which leave each other alone."""
    return start_in_module()


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

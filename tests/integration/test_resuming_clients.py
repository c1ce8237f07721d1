"""Clients that resume a download by themselves, while copies of the sample are damaged."""

import os
import subprocess
import time

import pytest

from tests.integration.mounts import program
from tests.integration.process import environment, sha_of

BYTES = 10_000_000

#: What each client runs to fetch `{url}` into `{file}`, or to go on with what it has there.
CLIENTS = {
    "curl": ["curl", "-q", "-sSf", "-C", "-", "-o", "{file}", "{url}"],
    "curl-retry": [
        *["curl", "-q", "-sSf", "--retry", "2", "--retry-all-errors", "--retry-delay", "1"],
        *["-C", "-", "-o", "{file}", "{url}"],
    ],
    "wget": [
        "wget",
        "--no-config",
        "-nv",
        "-c",
        "-t",
        "3",
        "--waitretry=1",
        "-O",
        "{file}",
        "{url}",
    ],
    "aria2c": [
        *["aria2c", "--no-conf", "-q", "-c", "-m", "3", "--retry-wait=1", "-x", "1"],
        *["-d", "{directory}", "-o", "sample", "{url}"],
    ],
    "aria2c-parts": [
        *["aria2c", "--no-conf", "-q", "-c", "-m", "3", "--retry-wait=1", "-x", "4", "-s", "4"],
        *["-k", "1M", "-d", "{directory}", "-o", "sample", "{url}"],
    ],
    "httpie": [
        *["http", "--ignore-stdin", "--quiet", "--download", "--continue"],
        *["--output", "{file}", "{url}"],
    ],
}

PACKAGES = {"aria2c": "aria2", "http": "httpie"}

#: Where a byte of a copy is flipped.
PLACES = {"first": [0], "middle": [BYTES // 2], "last": [-1], "several": [300_000, 4_000_000, -9]}

#: A client that was cut off is run once more, and then again, a moment later.
RUNS = 3
PAUSE_SECONDS = 1.0


def fetch(client, url, directory):
    """Have a client fetch a sample: its exit status, and the file or what there is of it."""
    directory.mkdir()
    file = directory / "sample"
    command = [word.format(file=file, url=url, directory=directory) for word in CLIENTS[client]]
    command[0] = program(command[0], PACKAGES.get(command[0], command[0]))
    for run in range(RUNS):
        if run:
            time.sleep(PAUSE_SECONDS)
        ended = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=environment(HTTPIE_CONFIG_DIR=str(directory), HOME=str(directory)),
            timeout=90,
            check=False,
        )
        if not ended.returncode:
            break
    return ended.returncode, file.read_bytes() if file.exists() else None


def flip(path, places, size=BYTES):
    """Damage a copy as a disk does: one bit of each of these bytes is another."""
    with path.open("r+b") as file:
        for place in places:
            at = place % size
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 1]))


@pytest.fixture(scope="module")
def pair(start_in_module):
    """A Stor with one pair of disks."""
    stor = start_in_module(index=False, sets=(2,))
    yield stor
    stor.kill()  # its log has the damage


def store(pair, summed):
    """Two copies of a new sample, with block sums or as an older Stor kept them: its content."""
    content = os.urandom(BYTES)
    if summed:
        assert pair.put(content).status == 201
    else:
        pair.place(content)
    return content


@pytest.mark.parametrize("summed", [True, False], ids=["sums", "no-sums"])
@pytest.mark.parametrize("client", CLIENTS)
def test_with_a_good_copy_each_ends_with_the_sample_or_says_no(pair, tmp_path, client, summed):
    for n, places in enumerate(PLACES.values()):
        for which in range(2):
            content = store(pair, summed)
            sha = sha_of(content)
            flip(pair.copies(sha)[which], places)
            status, got = fetch(client, pair.url(sha), tmp_path / f"{n}-{which}")
            assert got == content or status != 0, f"flipped: {places}"
            # With sums there is nothing to say no to.
            assert status == 0 or not summed, f"flipped: {places}"


@pytest.mark.parametrize("client", CLIENTS)
def test_copies_that_are_bad_in_different_blocks_are_one_sample(pair, tmp_path, client):
    content = store(pair, summed=True)
    sha = sha_of(content)
    for path, places in zip(pair.copies(sha), ([0, 5_000_000], [2_500_000, -1]), strict=True):
        flip(path, places)
    assert fetch(client, pair.url(sha), tmp_path / "got") == (0, content)


@pytest.mark.parametrize("summed", [True, False], ids=["sums", "no-sums"])
@pytest.mark.parametrize("client", CLIENTS)
def test_with_no_good_copy_each_says_no(pair, tmp_path, client, summed):
    content = store(pair, summed)
    sha = sha_of(content)
    for path, place in zip(pair.copies(sha), (5_000_000, 5_000_007), strict=True):  # one block
        flip(path, [place])
    assert fetch(client, pair.url(sha), tmp_path / "got")[0] != 0


@pytest.mark.parametrize("size", [300_000, 600_000, 5_000_000])
def test_the_first_answer_is_whole_while_two_bad_copies_are_being_mended(pair, size):
    """A repair that finds both copies bad does not take away what is right of them."""
    for _ in range(10):
        content = os.urandom(size)
        assert pair.put(content).status == 201
        for path, place in zip(pair.copies(sha_of(content)), (100, size - 100), strict=True):
            flip(path, [place], size)
        answer = pair.get(sha_of(content))
        assert (answer.status, len(answer.body)) == (200, size)
        assert sha_of(answer.body) == sha_of(content)

"""Stors without disks behind HAProxy, configured as the documentation says."""

import contextlib
import json
import re

import pytest

from stor.config import parse
from tests.engines.process import Process, run
from tests.integration.load import Load
from tests.integration.process import REPOSITORY, Stor, free_port, poll, sha_of

PAGE = (REPOSITORY / "docs" / "beyond-one-machine.md").read_text()
(PROXY,) = re.findall(r"^```haproxy\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
(STOR,) = re.findall(r"^```json\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)

SIZES = {0: 1, 1000: 10, 100_000: 5, 1_000_000: 1}
ACTIONS = {"post": 4, "again": 1, "get": 6, "head": 1}


@pytest.fixture
def stors(swift, start, tmp_path):
    """Two, as the page says, but for addresses, names and places."""
    keys = json.loads(STOR)
    bucket = swift.new_bucket()
    for name in ("basic_auth", "listen", "spool_directory"):
        del keys[name]
    keys["s3_credentials"] |= {
        **{"access_key": swift.access_key, "secret_key": swift.secret_key},
        **{"host": swift.endpoint, "bucket": bucket},
    }
    stors = [
        start(**keys, storage_pairs=[], spool_directory=str(tmp_path / f"spool{number}"))
        for number in range(2)
    ]
    for stor in stors:
        poll(lambda stor=stor: stor.get("status").body == b"OK\n", what="an available S3")
    return stors


@pytest.fixture
def proxy(stors, tmp_path):
    """The HAProxy of the page before them: a way to talk to it."""
    port = free_port()
    text = PROXY.replace("bind :8080", f"bind 127.0.0.1:{port}")
    for number, stor in enumerate(stors, 1):
        text = text.replace(f"192.0.2.1{number}:8080", f"127.0.0.1:{stor.port}")
    assert "192.0.2." not in text
    file = tmp_path / "haproxy.cfg"
    file.write_text(text)
    run(["haproxy", "-c", "-f", file])
    front = Server(port)
    process = Process(tmp_path, "haproxy", ["haproxy", "-db", "-f", file], front.answers)
    process.start()
    try:
        process.wait()
        yield front
    finally:
        process.kill()


class Server(Stor):
    """What clients see: somebody answers at a port."""

    def __init__(self, port):
        self.port = port

    def answers(self):
        with contextlib.suppress(OSError):
            return self.get("status").status == 200


def test_the_configuration_of_the_page_is_valid():
    config = parse(STOR)
    assert (config.s3_write, config.sets) == ("only", ())
    assert [one for one in config.warnings if "example" not in one] == []


def test_what_one_stores_all_serve_and_none_is_missed(stors, proxy):
    load = Load(proxy.port, clients=4, actions=ACTIONS, sizes=SIZES)
    dead, alive = stors
    with load.running():
        poll(lambda: load.requests > 80, 60, "some load")
        dead.kill()
        at_the_end = load.requests
        poll(lambda: load.requests > at_the_end + 80, 60, "more load")
    # Each client may have had one answer cut, and the one after it refused.
    troubles = [(trouble.action, trouble.status) for trouble in load.surprises]
    assert all(status in (502, 503) for _, status in troubles), load.surprises
    assert len(troubles) + load.lost <= 2 * 4
    assert len(load.acknowledged) > 20
    for sha, sample in load.acknowledged.items():
        response = proxy.get(sha)
        assert (response.status, response.body) == (200, sample.content)

    # The one that is back takes its part again, and serves what was stored without it.
    dead.start()
    poll(lambda: dead.get("status").body == b"OK\n", what="an available S3")
    for sha, sample in list(load.acknowledged.items())[-10:]:
        assert dead.get(sha).body == sample.content

    # Without any there is an answer that clients do not take for the last word.
    for stor in stors:
        stor.kill()
    answer = proxy.get(sha_of(b"any"))
    assert (answer.status, answer.headers["retry-after"]) == (503, "15")
    assert alive.refuses()

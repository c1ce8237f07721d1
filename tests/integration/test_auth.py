"""Credentials as curl gives them, against a real Stor."""

import base64
import http.client
import itertools
import json
import os
import threading
import time
from collections import Counter

import bcrypt
import pytest

from tests.integration.curl import curl
from tests.integration.load import percentile, timed
from tests.integration.process import configure, poll, refused_start, sha_of

CONTENT = b"a sample"
SHA = sha_of(CONTENT)


def hashed(password, rounds=4):
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(rounds, b"2a")).decode()


def basic(credentials):
    return f"Basic {base64.b64encode(credentials.encode()).decode()}"


def answered(*arguments):
    """What curl is told: the status and the body."""
    ended = curl(*arguments)
    assert ended.errors == []
    return ended.code, ended.body.decode()


@pytest.fixture
def users(tmp_path):
    path = tmp_path / "users"
    path.write_text(f"anna:{hashed('one')}\n")
    return path


def test_users_of_a_file_store_and_read(start, users):
    stor = start(basic_auth={"htpasswd": str(users)}, read_auth=True)
    post = ["--data-binary", "a sample", stor.url(SHA)]
    assert answered(*post)[0] == 401
    assert answered("-u", "anna:wrong", *post)[0] == 401
    status, paths = answered("-u", "anna:one", *post)
    assert (status, len(json.loads(paths))) == (201, 2)
    assert answered("-u", "anna:one", *post)[0] == 200
    assert answered(stor.url(SHA))[0] == 401
    assert answered("-I", stor.url(SHA))[0] == 401
    assert answered("-u", "anna:one", stor.url(SHA)) == (200, "a sample")
    assert answered("-u", "anna:one", "-I", stor.url(SHA))[0] == 200
    assert answered(stor.url("status")) == (200, "OK\n")
    assert answered(stor.url())[0] == 200

    new = users.with_suffix(".new")
    new.write_text(f"anna:{hashed('one')}\nbert:{hashed('two')}\n")
    new.replace(users)
    poll(lambda: answered("-u", "bert:two", stor.url(SHA))[0] == 200, 5, "a new user")


class Guesser:
    """Posts wrong passwords from an address of its own, several at once, as quickly as it can."""

    def __init__(self, stor, address="127.0.0.2", connections=4):
        self.statuses = Counter()
        self._stor, self._address = stor, address
        self._over = threading.Event()
        self._numbers = itertools.count()
        self._threads = [threading.Thread(target=self._guess) for _ in range(connections)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *reason):
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _guess(self):
        while not self._over.is_set():
            connection = http.client.HTTPConnection(
                "127.0.0.1", self._stor.port, timeout=30, source_address=(self._address, 0)
            )
            guess = {"Authorization": basic(f"anna:{next(self._numbers)}")}
            connection.request("POST", f"/{SHA}", CONTENT, guess)
            self.statuses[connection.getresponse().status] += 1
            connection.close()


def test_guesses_slow_down_themselves_and_nobody_else(start, users, figures):
    """With a hash of 0.3 s and more; users begin to store while another address guesses."""
    names = ["anna", *(f"user{n}" for n in range(8))]
    users.write_text("".join(f"{name}:{hashed(name, 12)}\n" for name in names))
    stor = start(basic_auth={"htpasswd": str(users)})

    def post(name):
        content = os.urandom(1000)
        return stor.request(
            "POST", sha_of(content), content, {"Authorization": basic(f"{name}:{name}")}
        )

    assert post("anna").status == 201
    quiet = [timed(post, "anna")[0] for _ in range(200)]
    with Guesser(stor) as guesser:
        poll(lambda: guesser.statuses[401] > 3, 20, "some guesses")
        before, begun = guesser.statuses[401], time.monotonic()
        loud = []
        for name in names[1:]:
            seconds, answer = timed(post, name)
            assert answer.status == 201, "a password that was not hashed before"
            assert seconds < 5
            loud += [timed(post, "anna") for _ in range(25)]
        guessed = guesser.statuses[401] - before
        seconds = time.monotonic() - begun
    assert {answer.status for _, answer in loud} == {201}
    # More than every other post has a guess hashed beside it.
    added = percentile([took for took, _ in loud], 0.75) - percentile(quiet, 0.75)
    figures["microseconds that guesses add to the posts of others"] = round(max(0, added) * 1e6)
    assert added < 0.05
    assert guessed <= 6 + seconds / 2
    assert set(guesser.statuses) <= {401, 503}


def test_what_is_wrong_with_a_file_stops_the_start(tmp_path, users):
    users.write_text(f"anna:{hashed('one')}\nbert:$apr1$abc$def\n")
    configure(tmp_path, basic_auth={"htpasswd": str(users)}, workers=0)
    status, output, errors = refused_start("stor", "--config", "config.json", directory=tmp_path)
    assert (status, output) == (1, "")
    assert errors.splitlines() == [
        f"stor: config.json: basic_auth.htpasswd: {users}: line 2: "
        "expected a bcrypt hash, as htpasswd -B writes it, found another kind",
        "stor: config.json: workers: expected a whole number from 1 up to 128, found 0",
    ]

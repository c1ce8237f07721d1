"""Credentials as curl gives them, against a real Stor."""

import base64
import json
import subprocess

import bcrypt
import pytest

from tests.integration.curl import curl
from tests.integration.process import configure, environment, poll, refused_start, sha_of

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
    assert answered(stor.url("status")) == (200, "OK")
    assert answered(stor.url())[0] == 200

    new = users.with_suffix(".new")
    new.write_text(f"anna:{hashed('one')}\nbert:{hashed('two')}\n")
    new.replace(users)
    poll(lambda: answered("-u", "bert:two", stor.url(SHA))[0] == 200, 5, "a new user")


def test_hashing_holds_up_nobody_and_has_an_end(start, users):
    """A hash of 0.3 s and more, sixty wrong passwords, and answers all the while."""
    users.write_text(f"anna:{hashed('one', 12)}\n")
    stor = start(basic_auth={"htpasswd": str(users)})
    assert answered("-u", "anna:one", "--data-binary", "a sample", stor.url(SHA))[0] == 201
    guesses = [
        subprocess.Popen(
            ["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", *guess, stor.url(SHA)],
            env=environment(),
            stdout=subprocess.PIPE,
        )
        for guess in (["-u", f"anna:{n}", "--data-binary", "x"] for n in range(60))
    ]
    passed = 0
    while any(guess.poll() is None for guess in guesses):
        assert stor.get(SHA).body == CONTENT
        known = stor.request("POST", SHA, CONTENT, {"Authorization": basic("anna:one")})
        assert known.status == 200, "a password that was verified lately waits for nothing"
        passed += 1
    assert passed > 10
    statuses = [int(guess.communicate(timeout=30)[0]) for guess in guesses]
    assert set(statuses) <= {401, 503}
    assert statuses.count(401) >= 10
    assert answered("-u", "anna:one", "--data-binary", "a sample", stor.url(SHA))[0] == 200


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

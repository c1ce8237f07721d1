"""`/status`: what a load balancer and an operator are told, from what is known."""

import errno
import json
import os
import shutil

import pytest

from stor import __version__
from tests.support.files import FaultyFiles, RecordingFiles
from tests.support.http import Disks, no_bug_logged
from tests.support.pools import HeldPool
from tests.support.rig import AUTHORIZATION, Rig

JSON = [("Accept", "application/json")]


@pytest.fixture(autouse=True)
def _no_bug():
    with no_bug_logged():
        yield


@pytest.mark.parametrize("target", ["/status", "/status/", "/status?x", "/status/?x", "/%73tatus"])
@pytest.mark.parametrize("accept", [None, "*/*", "text/plain", "text/html,*/*;q=0.8"])
def test_all_is_well(tmp_path, target, accept):
    rig = Rig(tmp_path)
    response = rig.request("GET", target, [("Accept", accept)] if accept else [])
    assert (response.status, response.body) == (200, b"OK\n")
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.headers["cache-control"] == "no-store"
    assert "retry-after" not in response.headers


def test_a_root_whose_path_is_no_text_is_one_as_any_other(tmp_path):
    """Its bytes are shown as a configuration in JSON has them."""
    rig = Rig(tmp_path / os.fsdecode(b"\xff \xc3\xa4"))
    shown = f"{tmp_path}/\\udcff ä/set0/disk0"
    for content in (b"one", b"another"):
        stored = rig.put(content)
        assert stored.status == 201
        assert json.loads(stored.body) == [str(path) for path in rig.copies(content)]
        assert rig.get(content).body == content
    for target, accept in (("/metrics", "*/*"), ("/", "text/html")):
        response = rig.request("GET", target, [("Accept", accept)])
        assert response.status == 200
        assert shown in response.body.decode().replace("\\\\", "\\"), target
    assert rig.request("GET", "/status").body == b"OK\n"
    disks = json.loads(rig.request("GET", "/status", JSON).body)["sets"][0]["disks"]
    assert disks[0]["root"] == str(rig.roots[0])
    for root in rig.roots:
        shutil.rmtree(root)
    rig.probe()
    for response in (rig.request("GET", "/status"), rig.get(b"one"), rig.put(b"new")):
        assert response.status == 503
        assert shown.removesuffix("set0/disk0") in response.body.decode()


PAGES = [("/", "text/html"), ("/", "*/*"), ("/status", "*/*"), ("/metrics", "*/*")]


@pytest.mark.parametrize(("target", "accept"), [*PAGES, ("/status", "application/json")])
def test_with_status_auth_the_pages_are_for_users(tmp_path, target, accept):
    rig = Rig(tmp_path)
    rig.reconfigure(status_auth=True)
    for authorization, status in ((None, 401), ("Basic Ym9iOng=", 401), (AUTHORIZATION, 200)):
        headers = [("Accept", accept)]
        if authorization is not None:
            headers.append(("Authorization", authorization))
        response = rig.request("GET", target, headers)
        assert response.status == status
        assert ("www-authenticate" in response.headers) == (status == 401)
        assert status == 200 or str(tmp_path) not in response.text


@pytest.mark.parametrize("damage", [False, True])
@pytest.mark.parametrize(
    ("status_auth", "read_auth"), [(True, False), (True, True), (False, False)]
)
def test_with_status_auth_no_stranger_is_told_where_a_disk_is_mounted(
    tmp_path, damage, status_auth, read_auth
):
    rig = Rig(tmp_path, sets=(1,))
    rig.put(b"content")
    if damage:
        rig.copies(b"content")[0].write_bytes(b"damaged")
    else:
        shutil.rmtree(rig.roots[0])
        rig.probe()
    rig.reconfigure(status_auth=status_auth, read_auth=read_auth)
    response = rig.get(b"content", [("Authorization", AUTHORIZATION)])
    assert response.status == (500 if damage else 503)
    assert response.headers.get("retry-after") == (None if damage else "15")
    # With `read_auth` somebody has looked who that is.
    assert (str(tmp_path) in response.text) == (read_auth or not status_auth)


@pytest.mark.parametrize("gone", [[0], [3], [0, 1], [1, 2], [0, 1, 2, 3]])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_each_missing_disk_is_named_and_why(tmp_path, gone, method):
    rig = Rig(tmp_path)
    for index in gone:
        shutil.rmtree(rig.roots[index])
    rig.probe()
    response = rig.request(method, "/status")
    expected = "".join(
        f"{rig.roots[i]}: offline: {rig.roots[i]}: not a directory\n" for i in gone
    ).encode()
    assert response.status == 503
    assert int(response.headers["retry-after"]) > 0
    assert response.headers["content-length"] == str(len(expected))
    assert response.body == (expected if method == "GET" else b"")


def test_a_file_in_place_of_a_disk(tmp_path):
    rig = Rig(tmp_path)
    shutil.rmtree(rig.roots[2])
    rig.roots[2].write_bytes(b"")
    rig.probe()
    response = rig.request("GET", "/status")
    assert response.status == 503
    assert f"{rig.roots[2]}: not a directory" in response.text


def test_a_disk_that_has_come_back_is_well_after_the_next_probe(tmp_path):
    rig = Rig(tmp_path)
    rig.roots[0].rename(tmp_path / "away")
    rig.probe()
    assert rig.request("GET", "/status").status == 503
    (tmp_path / "away").rename(rig.roots[0])
    rig.probe()
    assert rig.request("GET", "/status").body == b"OK\n"


@pytest.mark.parametrize("error", [errno.EROFS, errno.EACCES, errno.EIO])
def test_not_200_with_a_read_only_disk_in_the_set(tmp_path, error):
    disks = Disks(FaultyFiles)
    rig = Rig(tmp_path, files=disks)
    disks["set1/disk0"].fail_always("open_nameless", error)
    disks["set1/disk0"].fail_always("create", error)
    rig.probe()
    response = rig.request("GET", "/status")
    assert response.status == 503
    assert response.text.startswith(f"{rig.roots[2]}: ")
    assert response.text.count("\n") == 1


def test_a_disk_that_the_configuration_keeps_read_only_is_well(tmp_path):
    rig = Rig(tmp_path, read_only=[(0, 0), (0, 1)])
    assert rig.request("GET", "/status").body == b"OK\n"
    picture = json.loads(rig.request("GET", "/status", JSON).text)
    assert [s["writable"] for s in picture["sets"]] == [False, True]
    assert picture["sets"][0]["disks"][0]["state"] == "read-only"


def test_a_disk_that_fails_its_probe_is_not_well(tmp_path):
    disks = Disks(FaultyFiles)
    rig = Rig(tmp_path, files=disks)
    disks["set0/disk0"].fail_always("fstatvfs", errno.EIO)
    rig.probe()
    assert f"{rig.roots[0]}: offline: " in rig.request("GET", "/status").text


@pytest.mark.parametrize(
    "accept",
    [
        "application/json",
        "application/json, text/plain;q=0.5",
        "text/html, application/json;q=0.9, */*;q=0.1",
    ],
)
def test_the_whole_picture(tmp_path, accept):
    rig = Rig(tmp_path)
    response = rig.request("GET", "/status", [("Accept", accept)])
    assert response.status == 200
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "no-store"
    picture = json.loads(response.text)
    assert picture["version"] == __version__
    assert picture["available"] is True
    assert picture["problems"] == []
    disks = [disk for s in picture["sets"] for disk in s["disks"]]
    assert [disk["root"] for disk in disks] == [str(root) for root in rig.roots]
    for disk in disks:
        assert disk["state"] == "online"
        assert disk["reason"] is None
        assert disk["free_bytes"] > 0
        assert disk["errors"] == 0


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_the_whole_picture_of_trouble(tmp_path, method):
    rig = Rig(tmp_path)
    shutil.rmtree(rig.roots[1])
    rig.probe()
    response = rig.request(method, "/status", JSON)
    assert response.status == 503
    assert response.headers["content-type"] == "application/json"
    assert int(response.headers["retry-after"]) > 0
    if method == "HEAD":
        assert response.body == b""
        return
    picture = json.loads(response.text)
    assert picture["available"] is False
    assert len(picture["problems"]) == 1
    states = [disk["state"] for s in picture["sets"] for disk in s["disks"]]
    assert states == ["online", "offline", "online", "online"]
    assert [s["writable"] for s in picture["sets"]] == [False, True]
    assert "not a directory" in picture["sets"][0]["disks"][1]["reason"]


@pytest.mark.parametrize("headers", [[], JSON], ids=["text", "json"])
def test_no_disk_is_asked(tmp_path, headers):
    """A hung disk cannot hold up an answer that does not ask it."""
    disks = Disks(RecordingFiles)
    rig = Rig(tmp_path, files=disks, worker=HeldPool)
    before = {label: len(files.calls) for label, files in disks.items()}
    assert rig.request("GET", "/status", headers).status == 200
    assert {label: len(files.calls) for label, files in disks.items()} == before


@pytest.mark.parametrize("headers", [[], JSON], ids=["text", "json"])
def test_a_stor_that_is_stopping_says_so(tmp_path, headers):
    rig = Rig(tmp_path)
    rig.uploads.stop()
    response = rig.request("GET", "/status", headers)
    assert response.status == 503
    assert "stopping" in response.text
    assert int(response.headers["retry-after"]) > 0

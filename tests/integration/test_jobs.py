"""A running Stor and the operator's commands: a scrub, its end, and what it mended."""

import json
import os
import random
import stat
import subprocess
import sys
from functools import partial

import pytest

from stor.cli.admin_client import Failed
from stor.cli.admin_client import Stor as Admin
from tests.integration.process import (
    Stor,
    endpoint,
    environment,
    free_port,
    poll,
    sample_path,
    sha_of,
)

COMMAND = "import sys; from stor.cli.main import main; sys.exit(main())"
SAMPLES = [random.Random(n).randbytes(20_000) for n in range(40)]


def run(stor, *words, socket=None):
    """One command: its exit status, its output and its error output."""
    path = str(stor.directory / "admin.sock") if socket is None else socket
    ended = subprocess.run(
        [sys.executable, "-c", COMMAND, *words],
        cwd=stor.directory,
        env=environment(STOR_ADMIN_SOCKET=path),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return ended.returncode, ended.stdout, ended.stderr


def asked(stor, *words):
    """What a command says in JSON."""
    status, output, errors = run(stor, *words, "--json")
    assert (status, errors) == (0, "")
    return json.loads(output)


@pytest.fixture
def stor(tmp_path):
    port = free_port()
    stor = Stor.configured(
        tmp_path,
        port=port,
        listen=[endpoint(port), f"unix:{tmp_path / 'clients.sock'}"],
        admin_socket=str(tmp_path / "admin.sock"),
    )
    for content in SAMPLES:
        assert stor.put(content).status == 201
    yield stor
    stor.stop()


def test_damage_is_found_and_mended_by_the_command_and_everything_says_so(stor):
    mode = os.stat(stor.directory / "admin.sock").st_mode
    assert stat.S_IMODE(mode) == 0o660
    bad, lost, rotten = (sha_of(content) for content in SAMPLES[:3])
    stor.copies(bad)[0].write_bytes(bytes(20_000))
    stor.copies(lost)[1].unlink()
    for copy in stor.copies(rotten):
        copy.write_bytes(b"")
    status, output, _ = run(stor, "scrub", "--wait")
    assert status == 1  # one has no good copy
    assert f"no good copy of {rotten} is left" in output
    assert [copy.read_bytes() for copy in stor.copies(bad)] == [SAMPLES[0]] * 2
    assert [copy.read_bytes() for copy in stor.copies(lost)] == [SAMPLES[1]] * 2
    jobs = [job for job in asked(stor, "jobs") if job["kind"] == "scrub"]
    assert [job["about"] for job in jobs] == [str(root) for root in stor.roots]
    assert {job["state"] for job in jobs} == {"done"}
    assert sum(job["mended"] for job in jobs) == 2
    assert sum(job["missing"] for job in jobs) == 1
    assert sum(job["samples_done"] for job in jobs) >= 2 * len(SAMPLES) - 2
    risk = asked(stor, "at-risk")
    assert (risk["sha"], risk["good"], risk["wanted"]) == (rotten, 0, 2)
    assert asked(stor, "status")["at_risk"] == 1
    assert "at risk  1 samples" in run(stor, "status")[1]
    explained = asked(stor, "explain", rotten)
    assert explained["answer"]["status"] == 500
    said = [place["says"] for place in explained["places"] if "cannot be used" in place["says"]]
    assert len(said) == 2
    assert stor.put(SAMPLES[2]).status == 201
    poll(lambda: asked(stor, "status")["at_risk"] == 0, what="no sample at risk")
    stor.kill()  # the sample without a good copy is an error in the log, as it should be


def test_all_samples_of_a_set_that_lacks_a_disk_are_at_risk(tmp_path):
    stor = Stor.configured(tmp_path, sets=(2,), admin_socket=str(tmp_path / "admin.sock"))
    for content in SAMPLES:
        assert stor.put(content).status == 201
    assert run(stor, "at-risk")[1] == "every sample has all its copies, as far as is known\n"
    stor.roots[1].rename(tmp_path / "away")
    poll(lambda: asked(stor, "status")["at_risk"] == len(SAMPLES), 40, "the loss to be seen")
    output = run(stor, "at-risk")[1]
    assert f"all {len(SAMPLES)} samples of {stor.roots[0]}, {stor.roots[1]}: " in output
    listed = [json.loads(line) for line in run(stor, "at-risk", "--json")[1].splitlines()]
    assert [one["sha"] for one in listed] == sorted(map(sha_of, SAMPLES))
    assert {(one["good"], one["wanted"]) for one in listed} == {(1, 2)}
    assert {one["reason"] for one in listed} == {f"{stor.roots[1]}: not a directory"}
    stor.stop()


def test_a_job_goes_on_after_a_kill_where_it_was(stor):
    root = str(stor.roots[0])
    (job,) = asked(stor, "scrub", root, "--rate", "0.01")  # two seconds a sample
    poll(lambda: asked(stor, "jobs")[0]["samples_done"] >= 2, 30, "some progress")
    asked(stor, "pause", str(job["id"]))
    before = asked(stor, "jobs")[0]
    stor.kill()
    stor.start()
    after = asked(stor, "jobs")[0]
    assert after["state"] == "paused"
    assert after["samples_done"] >= before["samples_done"] - 1
    asked(stor, "rate", str(job["id"]), "none")
    asked(stor, "resume", str(job["id"]))
    poll(lambda: asked(stor, "jobs")[0]["state"] == "done", 30, "the end of the job")
    held = sum((stor.roots[0] / sample_path(sha_of(one))).exists() for one in SAMPLES)
    assert asked(stor, "jobs")[0]["samples_done"] == held
    assert f"job {job['id']} is done" in run(stor, "cancel", str(job["id"]))[2]


def test_a_rebuild_that_is_killed_goes_on_and_ends_right(tmp_path, figures):
    """One disk of the older Stor, one that is blank; killed as soon as something more is there."""
    samples = [b"sample %d" % n for n in range(2500)]
    for content in samples:
        path = tmp_path / "set0/disk0" / sample_path(sha_of(content))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    stor = Stor.configured(tmp_path, sets=(2,), admin_socket=str(tmp_path / "admin.sock"))

    def there():
        return sum(1 for _ in stor.roots[1].glob("??/??/??/*"))

    seen = [0]
    for _ in range(2):
        poll(lambda: there() > seen[-1], 120, "more samples on the second disk")
        stor.kill()
        seen.append(there())
        figures["rebuilds killed with kill -9"] += seen[-1] < len(samples)
        stor.start()
    poll(lambda: asked(stor, "status")["sets"][0]["disks"][1]["complete"], 120, "a complete disk")
    (job,) = [one for one in asked(stor, "jobs") if one["kind"] == "rebuild"]
    assert (job["kind"], job["state"], job["not_mended"]) == ("rebuild", "done", 0)
    for content in samples:
        assert (stor.roots[1] / sample_path(sha_of(content))).read_bytes() == content
    assert not list(stor.roots[1].glob(".stor/tmp/*"))
    assert f"job {job['id']} is done" in run(stor, "cancel", str(job["id"]))[2]
    stor.stop()


def test_rescan_is_a_job_that_learns_what_was_put_there_by_hand(stor):
    poll(lambda: all(one["indexed"] for one in asked(stor, "status")["sets"]), 60, "the index")
    new = b"copied by hand"
    path = stor.roots[0] / sample_path(sha_of(new))
    path.parent.mkdir(parents=True)
    path.write_bytes(new)
    (job,) = asked(stor, "rescan", str(stor.roots[0]), "--wait")
    assert (job["kind"], job["about"], job["state"]) == ("walk", str(stor.roots[0]), "done")
    assert stor.get(sha_of(new)).body == new
    ended, _, errors = run(stor, "rescan", "/nowhere")
    assert (ended, errors.count("\n")) == (1, 1)
    assert "stor: /nowhere: in no set: expected a storage root, one of" in errors


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("scrub", "/nowhere"), 1, "stor: /nowhere: in no set: expected a storage root, one of"),
        (("pause", "7"), 1, "stor: job 7: there is none with this number; see stor jobs"),
        (("explain", "abc"), 2, "stor: explain: argument SHA: expected 64 hexadecimal digits"),
        (("scrub", "--prefix", "xyz"), 2, "argument --prefix: expected hexadecimal digits, found"),
        (("rate", "7", "0"), 2, "expected a number above 0, found 0; to have a job rest: stor "),
        (("scrub", "--rate", "-1"), 2, "expected a number above 0, found -1"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(stor, words, status, said):
    ended, output, errors = run(stor, *words)
    assert (ended, output) == (status, "")
    assert said in errors.splitlines()[-1]
    assert len(errors.splitlines()) == 1 or status == 2


def test_a_stor_that_does_not_run_is_one_line(stor):
    for name in ("status", "jobs", "scrub", "at-risk"):
        path = str(stor.directory / "nothing.sock")
        ended, output, errors = run(stor, name, socket=path)
        assert (ended, output) == (1, "")
        assert errors.startswith(f"stor: {path}: no Stor listens there: start it, or name ")
        assert errors.count("\n") == 1


def test_a_socket_that_is_not_the_operator_s_is_one_line(stor):
    for command in ("status", "jobs", "at-risk"):
        ended, output, errors = run(stor, command, socket=str(stor.directory / "clients.sock"))
        assert (ended, output, errors.count("\n")) == (1, "", 1)
        assert "expected its admin_socket, not one for clients" in errors


BAD_ORDERS = [
    *(("scrub", {"rate": {"bytes_per_second": rate}}) for rate in (0, -1, True, "1", 10**400)),
    ("rate", {"job": 1, "rate": {"samples_per_second": 10**400}}),
    ("scrub", {"roots": "x"}),
    ("pause", {}),
]


@pytest.mark.parametrize(("name", "order"), BAD_ORDERS)
def test_what_an_operator_s_program_asks_in_vain_begins_no_job(stor, name, order):
    admin = Admin(str(stor.directory / "admin.sock"))
    with pytest.raises(Failed, match="expected"):
        admin.post(name, **order)
    assert admin.get("jobs") == []


@pytest.mark.parametrize("number", ["x", "-1", "9" * 5000])
def test_a_set_is_a_number(stor, number):
    with pytest.raises(Failed, match="set: expected a number, found "):
        Admin(str(stor.directory / "admin.sock")).get("at-risk", set=number)


def test_what_is_no_command_is_answered_in_json(stor):
    admin = Admin(str(stor.directory / "admin.sock"))
    for ask in (partial(admin.get, "nothing"), partial(admin.post, "jobs"), partial(admin.get, "")):
        with pytest.raises(Failed, match="no command of this name is asked for like that"):
            ask()

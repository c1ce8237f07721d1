"""`stor check-config`: whether a configuration can be used, before a service stumbles over it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stor.cli.main import main

GOOD = {"storage_pairs": [["/mnt/data1", "/mnt/data2"]], "basic_auth": "writer:pass"}


@pytest.fixture
def check(tmp_path, capsys):
    """Check a configuration: the path, the exit status, the lines of output and of errors."""

    def run(configuration):
        path = tmp_path / "config.json"
        path.write_text(json.dumps(configuration))
        status = main(["check-config", str(path)])
        output, errors = capsys.readouterr()
        return str(path), status, output.splitlines(), errors.splitlines()

    return run


def test_a_good_one(check):
    path, status, output, errors = check(GOOD)
    assert (status, errors) == (0, [])
    assert output == [
        "The configuration can be used (sets: 1, disks: 2)",
        "  set 1: /mnt/data1, /mnt/data2",
        "  listens at: tcp:8080",
        "  may store: writer",
        "  may read: everybody",
        "  may list: the same users",
        "  may see /, /status and /metrics: everybody",
        "  kept free on each disk: 1.1 GB",
        "  largest upload: no limit",
        "  at once: 10000 connections, 1000 uploads",
        "  processes: 1",
        f"  state: {os.environ.get('STATE_DIRECTORY') or Path(path).parent / 'stor-state'}",
    ]


def test_all_that_it_understood_is_said_but_for_what_is_secret(check):
    _, status, output, _ = check(
        {
            **GOOD,
            "storage_pairs": [["/mnt/data1"], ["/srv/old"]],
            "writable_pairs_regex": "data",
            "s3_enabled": True,
            "s3_credentials": {
                "access_key": "AK",
                "secret_key": "SK",
                "host": "https://s3.example",
            },
            "memcached_servers": ["cache"],
            "statsite": {"host": "stats"},
            "trusted_proxies": ["10.0.0.0/8"],
            "status_auth": True,
            "max_upload_bytes": "100 GB",
        }
    )
    assert status == 0
    for line in (
        "set 2: /srv/old (read, takes no new samples: writable_pairs_regex)",
        "S3: bucket samples at https://s3.example, written: never, asked: disk and then s3",
        "location cache: cache:11211",
        "statsd: stats:8125, stor",
        "says who the client is: 10.0.0.0/8",
        "may see /, /status and /metrics: the same users",
        "largest upload: 100 GB",
    ):
        assert f"  {line}" in output
    assert not [line for line in output for secret in ("pass", "SK", "AK") if secret in line]


def test_without_disks_only_s3_is_asked_and_no_disk_is_spoken_of(check):
    s3 = {"access_key": "AK", "secret_key": "SK", "host": "https://s3.example"}
    alone = {"s3_enabled": True, "s3_write": "only", "s3_credentials": s3}
    _, status, output, _ = check({"basic_auth": GOOD["basic_auth"], **alone})
    assert status == 0
    assert "  S3: bucket samples at https://s3.example, written: only, asked: s3" in output
    assert not [line for line in output if "each disk" in line]


def test_a_good_one_with_something_to_think_of(check):
    _, status, output, errors = check({**GOOD, "log": "/var/log/stor"})
    assert (status, errors) == (0, [])
    assert output[0] == "warning: log: does nothing in this Stor"


def test_sockets_that_only_the_service_has_are_no_fault(check):
    assert check({**GOOD, "listen": ["systemd:domain=INET6:name=stor-http"]})[1] == 0


def test_every_fault_has_its_line(check):
    path, status, output, errors = check(
        {
            "storage_pairs": [["/mnt/data1", "mnt/data2"]],
            "writable_pair_regex": "data",
            "reserve_bytes": "1 gigabyte",
            "require_mount": "no",
            "listen": ["tcp:8080", "tcp:http"],
        }
    )
    assert (status, output) == (1, [])
    expected = [
        'writable_pair_regex: unknown key, did you mean "writable_pairs_regex"?',
        'storage_pairs[0][1]: expected an absolute path, found "mnt/data2"',
        "basic_auth: missing, expected ",
        'listen[1]: expected a Twisted endpoint such as "tcp:8080" (invalid literal ',
        'reserve_bytes: expected a number of bytes from 0 on, or a text such as "100 GB" or '
        '"8 MiB", found "1 gigabyte"',
        'require_mount: expected true or false, found "no"',
    ]
    assert len(errors) == len(expected)
    for line, fault in zip(errors, expected, strict=True):
        assert line.startswith(f"stor: {path}: {fault}")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"basic_auth": "a:b", "basic_auth": "c:d"}'])
def test_what_is_no_configuration_has_one_line(tmp_path, capsys, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    assert main(["check-config", str(path)]) == 1
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith(f"stor: {path}: ")
    assert errors.count("\n") == 1


def test_a_file_that_is_not_there(tmp_path, capsys):
    path = tmp_path / "config.json"
    assert main(["check-config", str(path)]) == 1
    assert capsys.readouterr() == ("", f"stor: {path}: No such file or directory\n")


SHA = "0" * 64


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("", "the following arguments are required: COMMAND"),
        ("scrubb", "argument COMMAND: invalid choice: 'scrubb'"),
        ("--colour", "the following arguments are required: COMMAND"),
        ("status --colour", "unrecognized arguments: --colour"),
        ("rate 3", "rate: the following arguments are required: MB"),
        ("rate 3 fast", "rate: argument MB: expected a number above 0, found fast"),
        ("rate 3 nan", "rate: argument MB: expected a number above 0, found nan"),
        ("rate 3 1 --samples=-1", "rate: argument --samples: expected a number above 0, found -1"),
        ("pause one", "pause: argument JOB: expected the number of a job, found one"),
        ("pause \n", "pause: argument JOB: expected the number of a job, found \\n"),
        ("cancel -- -1", "cancel: argument JOB: expected the number of a job, found -1"),
        ("explain abc", "explain: argument SHA: expected 64 hexadecimal digits, found abc"),
        ("scrub --prefix xy", "scrub: argument --prefix: expected hexadecimal digits, found xy"),
        ("scrub --rate 0", "scrub: argument --rate: expected a number above 0, found 0"),
        (f"scrub {SHA} /mnt/data1", "scrub: expected one SHA, or disks and a prefix, found both"),
        (f"scrub {SHA} --prefix ab", "scrub: expected one SHA, or disks and a prefix, found both"),
        ("drain", "drain: the following arguments are required: ROOT"),
        ("put --connections x .", "put: argument --connections: expected a number from 1 to 1000"),
        ("put --connections 0 .", "put: argument --connections: expected a number from 1 to 1000"),
        ("get --retry soon x", "get: argument --retry: expected a number of seconds, found soon"),
        ("get --retry nan x", "get: argument --retry: expected a number of seconds, found nan"),
        ("mirror /tmp", "mirror: the following arguments are required: TO"),
        ("check-config --colour", "unrecognized arguments: --colour"),
        ("check-config", "no configuration: name a FILE or set $CONFIG_FILE"),
    ],
)
def test_a_call_that_makes_no_sense_is_told_in_one_line(capsys, monkeypatch, typed, said):
    monkeypatch.delenv("CONFIG_FILE", raising=False)
    with pytest.raises(SystemExit) as ended:
        main(typed.split(" ") if typed else [])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"stor: {said}")
    assert line.endswith("--help")


@pytest.mark.parametrize(
    "name",
    [
        "status",
        "jobs",
        "scrub",
        "drain",
        "rebalance",
        "rescan",
        "pause",
        "resume",
        "cancel",
        "rate",
        "at-risk",
        "explain",
        "adopt",
        "check-config",
    ],
)
def test_the_help_of_each_command_shows_an_example_and_that_it_speaks_json(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert f"Example: stor {name}" in " ".join(said.split())
    assert "--json" in said


def test_json_of_a_good_one_and_of_a_faulty_one(tmp_path, capsys):
    path = tmp_path / "config.json"
    pairs = [["/srv/a", "/srv/b"]]
    path.write_text(json.dumps({"storage_pairs": pairs, "basic_auth": "user:long enough"}))
    assert main(["check-config", "--json", str(path)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["faults"], said["understood"]["set 1"]) == ([], "/srv/a, /srv/b")
    path.write_text(json.dumps({"storage_pairs": pairs}))
    assert main(["check-config", "--json", str(path)]) == 1
    printed = capsys.readouterr()
    (fault,) = json.loads(printed.out)["faults"]
    assert printed.err == f"stor: {fault}\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("json", [[], ["--json"]])
def test_what_cannot_be_printed_is_told_in_one_line_and_who_has_seen_enough_is_let_go(
    tmp_path, json, unbuffered
):
    path = tmp_path / "config.json"
    path.write_text('{"storage_pairs": [["/srv/a", "/srv/b"]], "basic_auth": "user:long enough"}')
    command = [Path(sys.executable).parent / "stor", "check-config", *json, path]
    reading, writing = os.pipe()
    os.close(reading)
    for output, said in [
        (os.open("/dev/full", os.O_WRONLY), "stor: standard output: No space left on device\n"),
        (writing, ""),
    ]:
        ended = subprocess.run(
            command,
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            check=False,
        )
        os.close(output)
        assert (ended.returncode, ended.stderr) == (1, said)

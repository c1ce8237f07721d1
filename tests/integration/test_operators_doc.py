"""The session on a terminal that docs/operators.md shows goes as it is written there."""

import os
import random
import re
import signal
import subprocess
import sys

import pytest

from tests.integration.process import REPOSITORY, Stor, environment, poll, sha_of
from tests.integration.test_jobs import COMMAND

(SESSION,) = re.findall(
    r"^```console\n(.*?)^```$",
    (REPOSITORY / "docs" / "operators.md").read_text(),
    re.MULTILINE | re.DOTALL,
)
SAMPLES = [random.Random(n).randbytes(4000) for n in range(120)]

#: What the operator does before each `stor`, as the package has to be used.
AS_STOR = "runuser -u stor -- env STATE_DIRECTORY=/var/lib/stor "


def steps():
    """Each command, and what it says."""
    for step in SESSION.removeprefix("$ ").split("\n$ "):
        command, _, said = step.partition("\n")
        yield command, said.rstrip("\n")


def shape(text):
    """A text without what is another each time: versions, figures and identities."""
    text = re.sub(r"^Stor \S+:", "Stor:", text.rstrip("\n"), flags=re.MULTILINE)
    text = re.sub(r"^(problem  \S+: offline: ).*", r"\1", text, flags=re.MULTILINE)
    text = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "UUID", text)
    # Not the numbers of disks.
    return re.sub(r"(?<![\w.])[\d][\d,.]*(%| (B|kB|MB|GB|TB)\b)?", "#", text)


class Host:
    """Four disks of a running Stor, and what the session does to it."""

    def __init__(self, path):
        self.path = path
        self.stor = Stor.configured(
            path,
            storage_pairs=[self.made(1, 2), self.made(3, 4)],
            admin_socket=str(path / "admin.sock"),
            state_directory=str(path / "state"),
            scrub_days=0,
            workers=1,
        )
        self.actions = {
            "umount --lazy /srv/stor/disk2": lambda: None,  # it is dead, and away
            "mkfs.ext4 -q -L stor-disk2 /dev/sdf && mount /srv/stor/disk2 && "
            "chown stor: /srv/stor/disk2": lambda: self.made(2),
            "mount /srv/stor/disk5 && mount /srv/stor/disk6 && "
            "chown stor: /srv/stor/disk5 /srv/stor/disk6": lambda: self.made(5, 6),
            "systemctl reload stor": self.reload,
        }

    def made(self, *numbers):
        roots = [self.path / f"disk{number}" for number in numbers]
        for root in roots:
            root.mkdir()
        return list(map(str, roots))

    def reload(self):
        before = len(self.stor.log)
        self.stor.signal(signal.SIGHUP)
        poll(lambda: "Reloaded: " in self.stor.log[before:], what="the end of a reload")

    def run(self, command):
        """Do what stands there: what was said."""
        if command in self.actions:
            self.actions[command]()
            return ""
        command = command.removeprefix(AS_STOR)
        for place, here in (("/etc/stor", self.path), ("/srv/stor", self.path)):
            command = command.replace(place, str(here))
        ended = subprocess.run(
            ["bash", "-euc", f'stor() {{ "{sys.executable}" -c "{COMMAND}" "$@"; }}; {command}'],
            cwd=self.path,
            env=environment(
                STOR_ADMIN_SOCKET=str(self.path / "admin.sock"),
                STATE_DIRECTORY=str(self.path / "state"),
            ),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert (ended.returncode, ended.stderr) == (0, ""), command
        return ended.stdout.replace(str(self.path), "/srv/stor")


@pytest.fixture
def host(tmp_path):
    host = Host(tmp_path)
    for content in SAMPLES:
        assert host.stor.put(content).status == 201
    os.rename(tmp_path / "disk2", tmp_path / "dead")
    yield host
    host.stor.stop()


def test_the_session(host):
    for command, said in steps():
        expected = shape(said)
        if command.startswith(("stor status", "stor jobs")):  # somebody waits for that
            poll(lambda c=command, e=expected: shape(host.run(c)) == e, 60, command)
        else:
            assert shape(host.run(command)) == expected, command
    for content in SAMPLES:
        assert host.stor.get(sha_of(content)).body == content
    assert not list(host.path.glob("disk[12]/??"))

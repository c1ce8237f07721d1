"""Ceph with its S3 gateway: a real cluster, whose object servers are its nodes."""

import json
import secrets
import uuid

from tests.engines.engine import Engine
from tests.engines.process import Group, Process, run
from tests.integration.process import free_port, poll

#: Placement groups, first map and first pools: about 15 s on two cores.
START_SECONDS = 120.0

SETTINGS = """\
[global]
fsid = {fsid}
mon host = v2:127.0.0.1:{port}
ms bind msgr1 = false
public addr = 127.0.0.1
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
keyring = {directory}/keyring
run dir = {directory}
log file =
log to stderr = true
err to stderr = true
pid file =
# The path of a Unix socket has room for 107 characters only.
admin socket =
# Each node has all objects, whatever else is on this machine.
osd pool default size = {nodes}
osd pool default min size = {quorum}
osd crush chooseleaf type = 0
osd pool default pg num = 1
osd pool default pg autoscale mode = off
mon allow pool size one = true
mon max pg per osd = 1000
# One other node's word is enough that a node is down: all of them are on one host.
mon osd min down reporters = 1
mon osd reporter subtree level = osd
osd heartbeat interval = 1
osd heartbeat grace = 4
mon data avail crit = 1
[mon]
mon data = {directory}/mon
auth allow insecure global id reclaim = false
[osd]
osd data = {directory}/$name
osd objectstore = bluestore
bluestore block size = 4294967296
osd memory target = 939524096
osd class load list = *
osd class default list = *
[client]
rgw data = {directory}/rgw
rgw thread pool size = 32
"""

ALL = "allow *"
CAPABILITIES = {
    "mon.": {"mon": ALL},
    "client.admin": {"mon": ALL, "osd": ALL, "mgr": ALL},
    "client.rgw": {"mon": "allow rw", "osd": "allow rwx"},
}
CAPABILITIES_OF_NODE = {"mon": "allow profile osd", "osd": ALL}


class Ceph(Engine):
    """A Ceph of one gateway, one monitor and `nodes` object servers.

    With three nodes a write needs two of them; with fewer, requests hang.
    """

    def __init__(self, directory, nodes=1):
        super().__init__(directory, nodes)
        self.access_key = secrets.token_hex(10)
        self.secret_key = secrets.token_hex(20)
        self._configuration = self.directory / "ceph.conf"
        self._monitor = Group()

    def start(self):
        """See `Engine.start`."""
        fsid, port = str(uuid.uuid4()), free_port()
        count = len(self.nodes)
        self._configuration.write_text(
            SETTINGS.format(
                **{"fsid": fsid, "port": port, "directory": self.directory},
                **{"nodes": count, "quorum": count // 2 + 1},
            )
        )
        self._make_keys()
        self._start_monitor(fsid, port)
        for number in range(count):
            self._make_node(number)
            self.nodes[number] = Group(self._daemon("ceph-osd", "-i", str(number)))
            self.nodes[number].start()
        poll(lambda: self._nodes_up() == count, START_SECONDS, "all nodes being up")
        self.front = Group(self._gateway())
        self.front.start()
        names = ("--uid", "test", "--display-name", "test")
        keys = ("--access-key", self.access_key, "--secret", self.secret_key)
        self._run("radosgw-admin", "user", "create", *names, *keys)

    def stop(self):
        """See `Engine.stop`."""
        # Without ceremony: what they would save is removed anyway.
        for group in (self.front, *self.nodes, self._monitor):
            group.kill()
        super().stop()

    def _make_keys(self):
        """A keyring for all."""
        keyring = self.directory / "keyring"
        run(["ceph-authtool", "--create-keyring", keyring])
        nodes = {f"osd.{n}": CAPABILITIES_OF_NODE for n in range(len(self.nodes))}
        for name, capabilities in (CAPABILITIES | nodes).items():
            caps = [word for place, may in capabilities.items() for word in ("--cap", place, may)]
            run(["ceph-authtool", keyring, "--gen-key", "-n", name, *caps])

    def _start_monitor(self, fsid, port):
        monitors = self.directory / "monitors"
        address = f"[v2:127.0.0.1:{port}]"
        run(["monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, monitors])
        keyring = self.directory / "keyring"
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monitors, "--keyring", keyring)
        self._monitor = Group(self._daemon("ceph-mon", "-i", "a"))
        self._monitor.start()

    def _make_node(self, number):
        (self.directory / f"osd.{number}").mkdir()
        identity = str(uuid.uuid4())
        self._run("ceph", "--connect-timeout", "30", "osd", "new", identity, number)
        self._run("ceph-osd", "-i", number, "--mkfs", "--osd-uuid", identity)

    def _nodes_up(self):
        return json.loads(self._run("ceph", "osd", "stat", "-f", "json"))["num_up_osds"]

    def _gateway(self):
        files = self.certificate
        faces = (
            f"beast endpoint=127.0.0.1:{self.port} ssl_endpoint=127.0.0.1:{self.tls_port}"
            f" ssl_certificate={files.file} ssl_private_key={files.key_file}"
        )
        path = "/swift/healthcheck"
        return self._daemon(
            *("radosgw", "-n", "client.rgw", "--rgw-frontends", faces),
            ready=lambda: self.answers(self.port, path) and self.answers(self.tls_port, path),
        )

    def _daemon(self, program, *arguments, ready=None):
        name = f"{program}{arguments[1]}"
        command = [program, "-c", self._configuration, "-f", *arguments]
        return Process(self.directory, name, command, ready)

    def _run(self, program, *arguments):
        return run([program, "-c", self._configuration, *arguments], START_SECONDS)

"""OpenStack Swift with its S3 face: the real servers, without root."""

import getpass
import json
import secrets

from tests.engines.engine import Engine
from tests.engines.process import Group, Process, run
from tests.integration.process import REPOSITORY, free_port

BIN = REPOSITORY / ".venv-swift" / "bin"

SERVICES = ("account", "container", "object")

CLUSTER = """\
[swift-hash]
swift_hash_path_suffix = {suffix}
[storage-policy:0]
name = all
default = yes
"""

PROXY = """\
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
{tls}
workers = 0
user = {user}
swift_dir = {directory}
[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck proxy-logging cache listing_formats s3api tempauth \
copy slo dlo versioned_writes symlink proxy-logging proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
conn_timeout = 1
# A node that is back is used again after so long.
error_suppression_interval = 1
[filter:s3api]
use = egg:swift#s3api
location = {region}
[filter:tempauth]
use = egg:swift#tempauth
user_{account}_{name} = {secret} .admin
[filter:cache]
use = egg:swift#memcache
# Nobody listens there, so nothing is remembered between requests.
memcache_servers = 127.0.0.1:1
[filter:proxy-logging]
use = egg:swift#proxy_logging
[filter:versioned_writes]
use = egg:swift#versioned_writes
allow_versioned_writes = true
"""

PLAIN_FILTERS = (
    *("catch_errors", "gatekeeper", "healthcheck"),
    *("listing_formats", "copy", "slo", "dlo", "symlink"),
)

STORAGE = """\
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
swift_dir = {directory}
devices = {devices}
mount_check = false
disable_fallocate = true
[pipeline:main]
pipeline = healthcheck {service}-server
[app:{service}-server]
use = egg:swift#{service}
fallocate_reserve = 0
[filter:healthcheck]
use = egg:swift#healthcheck
"""

#: For Swift's own Python; all rings in one process, where its own tool takes three a ring.
RINGS = """\
import json, sys
from swift.common.ring import RingBuilder
directory, ports = sys.argv[1], json.loads(sys.argv[2])
for service, ports in ports.items():
    builder = RingBuilder(part_power=4, replicas=len(ports), min_part_hours=0)
    for zone, port in enumerate(ports):
        builder.add_dev(dict(
            region=1, zone=zone, weight=1.0, device="disk", ip="127.0.0.1", port=port,
            replication_ip="127.0.0.1", replication_port=port, meta="",
        ))
    builder.rebalance()
    builder.get_ring().save(f"{directory}/{service}.ring.gz")
"""


class Swift(Engine):
    """A Swift of one proxy and `nodes` nodes, each with an account, container and object server.

    With three nodes a write needs two of them. Its files need extended attributes.
    """

    access_key = "test:tester"

    def __init__(self, directory, nodes=1):
        assert BIN.exists(), "Swift is missing: make .venv-swift/installed"
        super().__init__(directory, nodes)
        self.secret_key = secrets.token_hex(16)
        self._ports = {service: [free_port() for _ in self.nodes] for service in SERVICES}

    def start(self):
        """See `Engine.start`."""
        self._write("swift.conf", CLUSTER.format(suffix=secrets.token_hex(8)))
        run([BIN / "python", "-c", RINGS, self.directory, json.dumps(self._ports)])
        for number in range(len(self.nodes)):
            self.nodes[number] = Group(*[self._storage(number, service) for service in SERVICES])
        self.front = Group(self._proxy("http"), self._proxy("https"))
        everything = Group(*self.front.processes, *[p for n in self.nodes for p in n.processes])
        everything.start()

    def _storage(self, number, service):
        devices = self.directory / f"node{number}"
        (devices / "disk").mkdir(parents=True, exist_ok=True)
        port = self._ports[service][number]
        settings = STORAGE.format(service=service, port=port, devices=devices, **self._common)
        return self._server(f"{service}{number}", service, settings, port)

    def _proxy(self, scheme):
        tls, port = "", self.port
        if scheme == "https":
            files = self.certificate
            tls, port = f"cert_file = {files.file}\nkey_file = {files.key_file}", self.tls_port
        account, _, name = self.access_key.partition(":")
        settings = PROXY.format(
            **self._common,
            **{"port": port, "tls": tls, "region": self.region},
            **{"account": account, "name": name, "secret": self.secret_key},
        )
        settings += "".join(f"[filter:{name}]\nuse = egg:swift#{name}\n" for name in PLAIN_FILTERS)
        return self._server(scheme, "proxy", settings, port)

    def _server(self, name, service, settings, port):
        file = self._write(f"{name}.conf", settings)
        command = [BIN / f"swift-{service}-server", file, "-v"]
        return Process(self.directory, name, command, lambda: self.answers(port, "/healthcheck"))

    @property
    def _common(self):
        return {"user": getpass.getuser(), "directory": self.directory}

    def _write(self, name, text):
        file = self.directory / name
        file.write_text(text)
        return file

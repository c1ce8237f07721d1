"""A real Stor: `twistd -n stor` as a process of its own, on a loopback port."""

import contextlib
import hashlib
import http.client
import json
import os
import random
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.support.network import Response
from tests.support.rig import AUTHORIZATION, PASSWORD, USER, request_bytes

TWISTD = Path(sys.executable).parent / "twistd"
REPOSITORY = Path(__file__).parents[2]

MIB = 1024 * 1024

#: How many processes a Stor has that a test does not ask for a number of.
WORKERS = int(os.environ.get("STOR_TEST_WORKERS", "1"))

#: How long a start may take on a machine that has much else to do.
START_SECONDS = 30.0

#: What no log of a Stor that does well has in it.
COMPLAINTS = re.compile(r"Traceback|Unhandled|#critical|#error|never retrieved|Warning: ")


def poll(condition, seconds=10.0, what="a condition"):
    """Wait until `condition()` is true, and give back what it returned."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} has not come true within {seconds:g} s"
        time.sleep(0.02)
    return value


def free_port():
    """A port that nobody listens on, from below those that outgoing connections take."""
    while True:
        port = random.randrange(10_000, 32_000)
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


def endpoint(port):
    """The description of a loopback endpoint."""
    return f"tcp:{port}:interface=127.0.0.1"


def sha_of(content):
    """The sample's name."""
    return hashlib.sha256(content).hexdigest()


def sample_path(sha):
    """Where a sample is below a storage root."""
    name = sha.upper()
    return f"{name[:2]}/{name[2:4]}/{name[4:6]}/{name}.dat"


def place(content, roots):
    """Write a sample onto disks as the older Stor has it; its sha."""
    sha = sha_of(content)
    for root in roots:
        path = Path(root) / sample_path(sha)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return sha


def environment(**changes):
    """The environment for a twistd or a curl: no configuration and no proxy of the tests' own."""
    kept = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    for name in ("CONFIG_FILE", "STATE_DIRECTORY"):
        kept.pop(name, None)
    return kept | changes


def configure(directory, sets=(2, 2), port=None, **keys):
    """Write `config.json` for `sets` with so many roots each, and further `keys`.

    Gives the port and the roots, which are made, but for those that `keys` name.
    """
    directory, port = Path(directory), port or free_port()
    pairs = [
        [str(directory / f"set{s}" / f"disk{d}") for d in range(disks)]
        for s, disks in enumerate(sets)
    ]
    directory.mkdir(parents=True, exist_ok=True)
    for root in () if "storage_pairs" in keys else [root for pair in pairs for root in pair]:
        Path(root).mkdir(parents=True, exist_ok=True)
    configuration = {
        "storage_pairs": pairs,
        "basic_auth": f"{USER}:{PASSWORD}",
        "listen": [endpoint(port)],
        "require_mount": False,
        "reserve_bytes": 0,
        # What the tests look at are the disks.
        "cache_bytes": 0,
        "workers": WORKERS,
    } | keys
    (directory / "config.json").write_text(json.dumps(configuration))
    return port, [root for pair in configuration["storage_pairs"] for root in pair]


def refused_start(*arguments, directory, seconds=10, **variables):
    """Run a `twistd -n ...` that is to end by itself: its exit status, output and error output."""
    ended = subprocess.run(
        [TWISTD, "-n", "--pidfile=", *arguments],
        cwd=directory,
        env=environment(**variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    return ended.returncode, ended.stdout, ended.stderr


class Stor:
    """A Stor that runs. `stop` ends it, and holds it to having done so without a complaint."""

    user, password = USER, PASSWORD

    def __init__(self, directory, port, arguments, roots=(), sockets=(), wrapper=(), **variables):
        """`sockets` are handed to it as a service manager does (sd_listen_fds(3)).

        `wrapper` is a program that starts it, and its arguments.
        """
        self.directory = Path(directory)
        self.port = port
        self.roots = [Path(root) for root in roots]
        self.log_path = self.directory / "stor.log"
        self._arguments = arguments
        self._sockets = sockets
        self._wrapper = wrapper
        self._variables = variables
        self.start()

    @classmethod
    def configured(cls, directory, variables=None, sockets=(), wrapper=(), **keys):
        """One with the configuration that `configure` writes."""
        port, roots = configure(directory, **keys)
        arguments = ["stor", "--config", "config.json"]
        return cls(directory, port, arguments, roots, sockets, wrapper, **(variables or {}))

    # Its life.

    def start(self):
        """Start it, and wait until it has looked at its disks and answers."""
        self._accounted_for = False
        command = [*self._wrapper, TWISTD, "-n", "--pidfile=", *self._arguments]
        descriptors = [sock.fileno() for sock in self._sockets]
        if descriptors:
            adopt = "; ".join(f"exec {3 + n}<&{fd}" for n, fd in enumerate(descriptors))
            command = ["bash", "-c", f'{adopt}; LISTEN_PID=$$ exec "$@"', "-", *command]
        with self.log_path.open("w") as log:
            self._process = subprocess.Popen(
                command,
                pass_fds=descriptors,
                cwd=self.directory,
                env=environment(**self._variables),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        try:
            poll(self._answers, START_SECONDS, "an answer of the new process")
        except BaseException:
            self.kill()
            raise

    @property
    def pid(self):
        return self._process.pid

    @property
    def children(self):
        """The process ids of those that answer where there are several, by their names."""
        found = {}
        for pid in children(self.pid):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found[Path(f"/proc/{pid}/comm").read_text().strip()] = pid
        return found

    @property
    def pids(self):
        """All its processes."""
        return [self.pid, *children(self.pid)]

    @property
    def descendants(self):
        """All processes that it, or one of those, has made, from whichever thread."""
        found, todo = [], [self.pid]
        while todo:
            new = [child for pid in todo for child in children(pid, "*")]
            found, todo = found + new, new
        return found

    @property
    def log(self):
        """All that it has written, to standard output and standard error."""
        return self.log_path.read_text(errors="replace")

    def log_so_far(self):
        """The log once the lines of all requests are in it that are over."""
        marker = secrets.token_hex(8)
        self.request("GET", "status", headers={"X-Request-ID": marker})
        poll(lambda: f"id {marker}" in self.log, what="the line of a request")
        return self.log

    @property
    def running(self):
        return self._process.poll() is None

    def reload(self, seconds=20.0, **keys):
        """Give it another configuration, as `configure` writes it, with SIGHUP.

        Gives what it says of that, once it has said whether it is in force.
        """
        configure(self.directory, port=self.port, **keys)
        before = len(self.log)
        self.signal(signal.SIGHUP)
        over = re.compile(r"#\w+\] (Reloaded|Not reloaded): .*\n")
        poll(lambda: over.search(self.log[before:]), seconds, "the end of a reload")
        return self.log[before:]

    def signal(self, number=signal.SIGTERM):
        """Send it a signal, and nothing else."""
        self._process.send_signal(number)

    def ended(self, seconds=10.0, status=0):
        """Wait for its end; it has ended with `status` and complained about nothing."""
        self._accounted_for = True
        try:
            found = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"still running after {seconds:g} s:\n{self.log}") from None
        assert found == status, f"exit status {found}, expected {status}:\n{self.log}"
        complaints = [line for line in self.log.splitlines() if COMPLAINTS.search(line)]
        assert not complaints, f"{complaints} in the log:\n{self.log}"

    def stop(self, seconds=10.0):
        """End it with SIGTERM, unless `ended` has seen its end already."""
        if not self._accounted_for:
            if self.running:
                self.signal()
            self.ended(seconds)

    def kill(self):
        """End all of it at once, whatever it does, as a crash would and a service manager does."""
        self._accounted_for = True
        if self.running:
            self._signal_all(signal.SIGKILL)
            self._process.wait()
        poll(lambda: not self._signal_all(0), what="the end of all its processes")

    def _signal_all(self, number):
        """Send all its processes a signal; whether there are any."""
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return False
        return True

    def remove(self):
        """End it if need be, and give back the space that its large samples take."""
        self.kill()
        for path in self.samples():
            with contextlib.suppress(OSError):
                if path.stat().st_size > MIB:
                    path.unlink()

    # What it takes.

    def memory_kib(self, name="VmRSS"):
        """`VmRSS`, what it has in memory now, or `VmHWM`, the most since `forget_peak`."""
        statuses = [Path(f"/proc/{pid}/status").read_text() for pid in self.pids]
        pattern = re.compile(rf"^{name}:\s+(\d+) kB$", re.MULTILINE)
        return sum(int(pattern.search(status)[1]) for status in statuses)

    def forget_peak(self):
        """Measure `VmHWM` anew (proc(5), clear_refs)."""
        for pid in self.pids:
            Path(f"/proc/{pid}/clear_refs").write_text("5")

    def descriptors(self):
        """What each open descriptor is, as the kernel names it."""
        return [name for pid in self.pids for name in descriptors(pid)]

    @property
    def at_rest(self):
        """Whether nobody is connected, and no file on its disks is open but their locks."""
        found = self.descriptors()
        roots = tuple(map(str, self.roots))
        locks = tuple(f"{root}/.stor/lock" for root in self.roots)
        files = [name for name in found if name.startswith(roots) and name not in locks]
        if len(self.pids) > 1:  # whose processes talk to each other, too
            return not files and not connections(self.port)
        # One socket is the port itself.
        return not files and sum(name.startswith("socket:") for name in found) == 1

    # What is on its disks.

    def samples(self):
        """All files under final names, on all disks."""
        return sorted(path for root in self.roots for path in root.glob("??/??/??/*"))

    def copies(self, sha):
        """The files that have a sample's name."""
        paths = [root / sample_path(sha) for root in self.roots]
        return [path for path in paths if path.exists()]

    def staged(self):
        """What uploads have not named yet: temporary files, and open ones without a name."""
        roots = tuple(f"{root}/" for root in self.roots)
        nameless = [
            name
            for name in self.descriptors()
            if name.startswith(roots) and name.endswith(" (deleted)")
        ]
        return nameless + [path for root in self.roots for path in root.glob(".stor/tmp/*")]

    def partials(self):
        """What is kept of uploads that can be gone on with."""
        return [path for root in self.roots for path in root.glob(".stor/partial/*")]

    # Talking to it.

    def url(self, name="", credentials=""):
        return f"http://{credentials}127.0.0.1:{self.port}/{name}"

    def connect(self, seconds=20.0, receive_buffer_bytes=None):
        """A new connection; nothing on it takes longer than `seconds`."""
        sock = socket.socket()
        if receive_buffer_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        sock.settimeout(seconds)
        try:
            sock.connect(("127.0.0.1", self.port))
        except BaseException:
            sock.close()
            raise
        return sock

    def refuses(self):
        """Whether nobody listens on its port."""
        try:
            self.connect(1.0).close()
        except ConnectionRefusedError:
            return True
        return False

    def request(self, method, name, body=None, headers=(), authorized=True):
        """One request on a connection of its own; its response. `body` may be an open file."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        credentials = {"Authorization": AUTHORIZATION} if authorized else {}
        try:
            connection.request(method, f"/{name}", body, credentials | dict(headers))
            answer = connection.getresponse()
            received = answer.read()
        finally:
            connection.close()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return Response(answer.status, found, received)

    def put(self, content, sha=None):
        """Store `content`."""
        return self.request("POST", sha or sha_of(content), content)

    def get(self, sha, **headers):
        """Fetch a sample."""
        return self.request("GET", sha, headers=headers, authorized=False)

    def place(self, content, roots=None):
        """Write a sample onto `roots` (all by default) by hand; its sha."""
        return place(content, self.roots if roots is None else roots)

    def _answers(self):
        assert self.running, f"ended with status {self._process.returncode}:\n{self.log}"
        with contextlib.suppress(ConnectionRefusedError):
            return self.get("0" * 64).status in (401, 404, 503)


def children(pid, thread=None):
    """The processes that a thread has made and that have not ended (proc(5), children).

    Without a `thread` it is the first of the process, with `"*"` any.
    """
    found = []
    for path in Path("/proc").glob(f"{pid}/task/{thread or pid}/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found += map(int, path.read_text().split())
    return found


def command_line(pid):
    """With what a process was started; nothing of one that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def descriptors(pid):
    """What each open descriptor of a process is, as the kernel names it."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found.append(os.readlink(entry))
    return found


def connections(port):
    """The sockets of those who have taken a connection on a port, as the kernel names them."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    local = f":{port:04X}"
    # Those that nobody has any more have no inode.
    return {
        f"socket:[{line[9]}]"
        for line in lines
        if line[1].endswith(local) and line[3] != "0A" and line[9] != "0"
    }


def upload_head(sha, length, *headers):
    """The head of an authorised upload of `length` bytes."""
    given = [("Authorization", AUTHORIZATION), ("Content-Length", str(length)), *headers]
    return request_bytes("POST", f"/{sha}", given)


def receive_all(sock):
    """All that comes until the other side says that it is all."""
    received = bytearray()
    while data := sock.recv(MIB):
        received += data
    return bytes(received)


def parse(received):
    """The one response in `received`, and nothing beside it."""
    head, separator, body = received.partition(b"\r\n\r\n")
    assert separator, f"no whole response: {received[:200]!r}"
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return Response(
        int(re.fullmatch(r"HTTP/1\.1 (\d{3}) .+", status)[1]),
        headers,
        body,
        complete=len(body) == int(headers["content-length"]),
    )

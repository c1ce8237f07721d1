"""The configuration: JSON in, frozen values out, every fault at once."""

import json
import os
import re
import ssl
from collections.abc import Callable, Iterator, Mapping
from ipaddress import IPv6Address, ip_network
from itertools import combinations
from types import MappingProxyType
from typing import Any

import attrs

from stor.htpasswd import Htpasswd, HtpasswdError, read_htpasswd
from stor.paths import is_path, printable, real_path
from stor.reader import Reader, show

#: What everybody has who has read the example.
_EXAMPLE = "writer_pass"

GIB = 1024**3
DEFAULT_LISTEN = ("tcp:8080",)
DEFAULT_CONNECTIONS = 10_000
DEFAULT_UPLOADS = 1000
MOST_WORKERS = 128
DEFAULT_CACHE_BYTES = 32 * 1024**2
DEFAULT_SCRUB_DAYS = 14
MOST_SCRUB_DAYS = 3650
#: What the path of a Unix socket may have (unix(7)).
MOST_SOCKET_BYTES = 107
DEFAULT_SPOOL = "/var/lib/stor/spool"
S3_WRITES = ("never", "copy", "only")
TIERS = ("disk", "s3")
LOG_FORMATS = ("text", "journal", "json")

#: The port of an endpoint that has one.
_PORT = re.compile(r"(?:haproxy:)?(?:tcp6?|ssl|tls):(?:port=)?(-?\d+)(?=:|$)")
_UNIX = re.compile(r"(?:haproxy:)?unix:(?:address=)?((?:\\.|[^:\\])*)")

#: Keys of the older Stor that have no meaning any more.
RETIRED = ("log", "cleanup_tempdir_period", "rabbitmq_uri")


class ConfigError(Exception):
    """The configuration cannot be used; `faults` are lines that each say what and where."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


@attrs.frozen
class Credentials:
    """A user and a password."""

    user: str
    password: str = attrs.field(repr=False)


@attrs.frozen
class S3:
    """An S3-compatible engine. `endpoint` is a URL."""

    access_key: str
    secret_key: str = attrs.field(repr=False)
    endpoint: str
    bucket: str = "samples"
    region: str | None = None
    ca_file: str | None = None


@attrs.frozen
class Statsite:
    """Where statsd datagrams go; `sample_rate` is in (0, 1]."""

    host: str
    port: int
    prefix: str
    sample_rate: float


@attrs.frozen
class Config:
    """What Stor is told to do; see `docs/configuration.md` for every key."""

    sets: tuple[tuple[str, ...], ...]
    writable: re.Pattern[str]
    credentials: tuple[Credentials, ...]
    htpasswd: Htpasswd | None = None
    read_auth: bool = False
    public_listing: bool = False
    status_auth: bool = False
    trusted_proxies: tuple[str, ...] = ()
    index: bool = True
    s3: S3 | None = None
    s3_write: str = "never"
    lookup_order: tuple[str, ...] = TIERS
    memcached_servers: tuple[tuple[str, int], ...] = ()
    statsite: Statsite | None = None
    listen: tuple[str, ...] = DEFAULT_LISTEN
    workers: int = 1
    reserve_bytes: int = GIB
    max_upload_bytes: int | None = None
    max_uploads: int = DEFAULT_UPLOADS
    max_connections: int = DEFAULT_CONNECTIONS
    require_mount: bool = True
    cache_bytes: int = DEFAULT_CACHE_BYTES
    log_format: str | None = None
    spool_directory: str = DEFAULT_SPOOL
    spool_bytes: int = 10 * GIB
    state_directory: str | None = None
    scrub_days: int = DEFAULT_SCRUB_DAYS
    admin_socket: str | None = None
    warnings: tuple[str, ...] = ()


#: Says what is wrong with an endpoint that looks like one; `None`: nothing.
EndpointFault = Callable[[str], str | None]


def load(
    path: str,
    endpoint_fault: EndpointFault = lambda endpoint: None,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Config:
    """Read the configuration file at `path`. Raises `ConfigError`.

    The `environment` says where the state directory and the socket for operators are, unless the
    configuration does.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: {getattr(error, 'strerror', None) or error}"]) from error
    try:
        chosen = parse(text, endpoint_fault)
        # Of several, as systemd.exec(5) has them, the first.
        given = chosen.state_directory or environment.get("STATE_DIRECTORY", "").partition(":")[0]
        runtime = environment.get("RUNTIME_DIRECTORY", "").partition(":")[0]
        if chosen.admin_socket is None and runtime:
            chosen = attrs.evolve(chosen, admin_socket=os.path.join(runtime, "admin.sock"))
        beside = os.path.join(os.path.dirname(os.path.abspath(path)), "stor-state")
        return with_state_directory(chosen, given or beside)
    except ConfigError as error:
        raise ConfigError([f"{path}: {fault}" for fault in error.faults]) from error


def with_state_directory(chosen: Config, directory: str) -> Config:
    """The configuration with this state directory. Raises `ConfigError`."""
    real = real_path(directory)
    for root in (root for of_set in chosen.sets for root in of_set):
        if os.path.commonpath([real, real_path(root)]) == real_path(root):
            raise ConfigError(
                [
                    "state_directory: expected a directory outside of the storage roots, "
                    f"found {directory}, which is below {root}"
                ]
            )
    return attrs.evolve(chosen, state_directory=directory)


def parse(text: str, endpoint_fault: EndpointFault = lambda endpoint: None) -> Config:
    """Read a configuration from JSON. Raises `ConfigError`."""
    try:
        data = json.loads(text, object_pairs_hook=_without_duplicates)
    except ValueError as error:
        raise ConfigError([f"not JSON: {error}"]) from error
    except RecursionError as error:
        raise ConfigError(["not a configuration: nested too deeply"]) from error
    if not isinstance(data, dict):
        raise ConfigError([f"expected a JSON object, found {show(data)}"])
    return _Reader(data, endpoint_fault=endpoint_fault).config()


@attrs.define(kw_only=True)
class _Reader(Reader):
    """Reads the keys of a configuration."""

    endpoint_fault: EndpointFault

    def config(self) -> Config:
        self.refuse_unknown("", self.data, _KEYS)
        self.warnings += [
            f"{key}: does nothing in this Stor" for key in RETIRED if key in self.data
        ]
        s3_write = self.choice("s3_write", S3_WRITES, None) or "never"
        values: dict[str, Any] = {
            "sets": self._sets(required=s3_write != "only"),
            "writable": self.regex("writable_pairs_regex"),
            **self._basic_auth(),
            "read_auth": self.boolean("read_auth", False),
            "public_listing": self.boolean("public_listing", False),
            "status_auth": self.boolean("status_auth", False),
            "trusted_proxies": self._trusted_proxies(),
            "index": self.boolean("index", True),
            "s3": self._s3(s3_write),
            "s3_write": s3_write,
            "lookup_order": self._lookup_order(s3_write),
            "memcached_servers": self._memcached_servers(),
            "statsite": self._statsite(),
            "listen": self._listen(),
            "workers": self.integer("workers", 1, 1, MOST_WORKERS),
            "reserve_bytes": self.size("reserve_bytes", GIB, 0),
            "max_upload_bytes": self.size("max_upload_bytes", None, 1),
            "max_uploads": self.integer("max_uploads", DEFAULT_UPLOADS, 1),
            "max_connections": self.integer("max_connections", DEFAULT_CONNECTIONS, 1),
            "require_mount": self.boolean("require_mount", True),
            "spool_directory": self.path("spool_directory", DEFAULT_SPOOL),
            "spool_bytes": self.size("spool_bytes", 10 * GIB, 1),
            "cache_bytes": self.size("cache_bytes", DEFAULT_CACHE_BYTES, 0),
            "log_format": self.choice("log_format", LOG_FORMATS, None),
            "state_directory": self._state_directory(),
            "scrub_days": self.integer("scrub_days", DEFAULT_SCRUB_DAYS, 0, MOST_SCRUB_DAYS),
            "admin_socket": self._admin_socket(),
        }
        self.text("secret", "", default="")
        if self.faults:
            raise ConfigError(self.faults)
        found = Config(**values)
        return attrs.evolve(found, warnings=(*self.warnings, *_warnings(found)))

    def _state_directory(self) -> str | None:
        return self.path("state_directory", "") if "state_directory" in self.data else None

    def _admin_socket(self) -> str | None:
        if "admin_socket" not in self.data:
            return None
        path = self.path("admin_socket", "")
        if len(os.fsencode(path)) > MOST_SOCKET_BYTES:
            self.fault("admin_socket", f"a path of at most {MOST_SOCKET_BYTES} bytes", path)
        return path or None

    def _sets(self, *, required: bool) -> tuple[tuple[str, ...], ...]:
        expected = 'a list of sets such as [["/mnt/data1", "/mnt/data2"]]'
        sets = self.data.get("storage_pairs")
        if sets is None and "storage_pairs" not in self.data:
            if required:
                self.missing("storage_pairs", expected)
            return ()
        if not isinstance(sets, list) or (required and not sets):
            self.fault("storage_pairs", expected, sets)
            return ()
        seen: dict[str, str] = {}
        return tuple(self._set(f"storage_pairs[{i}]", roots, seen) for i, roots in enumerate(sets))

    def _set(self, path: str, roots: Any, seen: dict[str, str]) -> tuple[str, ...]:
        if not isinstance(roots, list) or not roots:
            self.fault(path, "a list of one or more absolute paths", roots)
            return ()
        found = []
        for index, root in enumerate(roots):
            where = f"{path}[{index}]"
            if not is_path(root):
                self.fault(where, "an absolute path", root)
                continue
            # Two names of one directory would make one copy out of two.
            real = real_path(root)
            if real in seen:
                expected = f"a directory of its own (it is the same as {seen[real]})"
                self.fault(where, expected, root)
            seen[real] = where
            found.append(os.path.normpath(root))
        return tuple(found)

    def _basic_auth(self) -> dict[str, Any]:
        expected = '"user:password", a list of such, or {"htpasswd": "/path"}'
        value = self.data.get("basic_auth")
        if "basic_auth" not in self.data:
            self.missing("basic_auth", expected)
        elif isinstance(value, dict):
            return {"credentials": (), "htpasswd": self._htpasswd(value)}
        elif isinstance(value, list) and value:
            found = [
                self._credentials(f"basic_auth[{index}]", '"user:password"', one)
                for index, one in enumerate(value)
            ]
            return {"credentials": tuple(found)}
        else:
            return {"credentials": (self._credentials("basic_auth", expected, value),)}
        return {"credentials": ()}

    def _credentials(self, path: str, expected: str, value: Any) -> Credentials:
        user, colon, password = value.partition(":") if isinstance(value, str) else ("", "", "")
        if not (user and colon and password):
            self.fault(path, expected, value)
        return Credentials(user, password)

    def _htpasswd(self, value: dict[str, Any]) -> Htpasswd | None:
        self.refuse_unknown("basic_auth.", value, ("htpasswd",))
        path = value.get("htpasswd")
        if not is_path(path):
            self.fault("basic_auth.htpasswd", "an absolute path", path)
            return None
        try:
            return read_htpasswd(str(path))
        except OSError as error:
            self.faults.append(f"basic_auth.htpasswd: {path}: {error.strerror}")
        except HtpasswdError as error:
            self.faults += [f"basic_auth.htpasswd: {path}: {fault}" for fault in error.faults]
        return None

    def _s3(self, s3_write: str) -> S3 | None:
        enabled = self.boolean("s3_enabled", False)
        if s3_write != "never" and not enabled:
            self.fault("s3_write", '"never" without s3_enabled', s3_write)
        value = self.data.get("s3_credentials")
        if value is None and not enabled:
            return None
        known = ("access_key", "secret_key", "host", "bucket", "region", "ca_file")
        if not isinstance(value, dict):
            expected = "an object with access_key, secret_key and host"
            if "s3_credentials" in self.data:
                self.fault("s3_credentials", expected, value)
            else:
                self.missing("s3_credentials", expected)
            return None
        self.refuse_unknown("s3_credentials.", value, known)
        text: Callable[..., str] = lambda key, **default: self.text(  # noqa: E731
            f"s3_credentials.{key}", "a text that is not empty", value, **default
        )
        host = text("host")
        s3 = S3(
            text("access_key"),
            text("secret_key"),
            self._s3_endpoint(host) if host else "",
            self._bucket(text("bucket", default="samples")),
            text("region", default="") or None,
            text("ca_file", default="") or None,
        )
        if enabled and s3.ca_file is not None:
            self._ca_file(s3.ca_file)
        return s3 if enabled else None

    def _bucket(self, name: str) -> str:
        # What boto3 takes; engines allow less, each in its own way.
        if not re.fullmatch(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,255}", name):
            self.fault("s3_credentials.bucket", "the name of a bucket", name)
        return name

    def _ca_file(self, path: str) -> None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
        except ssl.SSLError:
            self.fault("s3_credentials.ca_file", "a file with certificates (PEM)", path)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            self.faults.append(f"s3_credentials.ca_file: {printable(path)}: {reason}")

    def _s3_endpoint(self, host: str) -> str:
        given = re.fullmatch(r"(?:(https?)://)?([^/]+)/?", host)
        found = _authority(given[2]) if given is not None else None
        if given is None or found is None:
            expected = "a name, an address, name:port or an http(s) URL without a path"
            self.fault("s3_credentials.host", expected, host)
            return ""
        name, port = found
        # What is signed and sent is ASCII.
        ascii_name = name if name.isascii() else name.encode("idna").decode("ascii")
        named = f"[{name}]" if ":" in name else ascii_name
        authority = named if port is None else f"{named}:{port}"
        if given[1] is None:
            self.warnings.append(
                f"s3_credentials.host: {host} has no scheme, http is used; "
                f"https://{authority} encrypts"
            )
        return f"{given[1] or 'http'}://{authority}"

    def _lookup_order(self, s3_write: str) -> tuple[str, ...]:
        order = self.data.get("lookup_order", list(TIERS))
        valid = isinstance(order, list) and all(isinstance(tier, str) for tier in order)
        if not valid or not order or len(set(order)) < len(order) or not set(order) <= set(TIERS):
            self.fault("lookup_order", 'a list of "disk" and "s3", each at most once', order)
            return TIERS
        # What is stored must be found again, by whoever asks next.
        home = "s3" if s3_write == "only" else "disk"
        if home not in order:
            self.fault("lookup_order", f'a list with "{home}", where samples are stored', order)
        return tuple(order)

    def _memcached_servers(self) -> tuple[tuple[str, int], ...]:
        servers = self.data.get("memcached_servers", [])
        if not isinstance(servers, list):
            self.fault("memcached_servers", "a list of host or host:port", servers)
            return ()
        found = []
        for index, server in enumerate(servers):
            address = _authority(server) if isinstance(server, str) else None
            if address is None:
                self.fault(f"memcached_servers[{index}]", "host or host:port", server)
            else:
                found.append((address[0], address[1] or 11211))
        return tuple(found)

    def _trusted_proxies(self) -> tuple[str, ...]:
        expected = 'a list of addresses, networks such as "10.0.0.0/8", and "unix"'
        given = self.data.get("trusted_proxies", [])
        if not isinstance(given, list):
            self.fault("trusted_proxies", expected, given)
            return ()
        for index, one in enumerate(given):
            if not (one == "unix" or (isinstance(one, str) and _is_network(one))):
                expected = 'an address, a network such as "10.0.0.0/8", or "unix"'
                self.fault(f"trusted_proxies[{index}]", expected, one)
        return tuple(map(str, given))

    def _statsite(self) -> Statsite | None:
        value = self.data.get("statsite")
        if value is None:
            return None
        if not isinstance(value, dict):
            self.fault("statsite", "an object with host, port, prefix and sample_rate", value)
            return None
        self.refuse_unknown("statsite.", value, ("host", "port", "prefix", "sample_rate"))
        rate = value.get("sample_rate", 1)
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate <= 1:
            self.fault("statsite.sample_rate", "a number above 0 and up to 1", rate)
        return Statsite(
            self.text("statsite.host", "a host name", value),
            self.integer("statsite.port", 8125, 1, 65535, value) or 0,
            self.text("statsite.prefix", "a text", value, default="stor"),
            rate,
        )

    def _listen(self) -> tuple[str, ...]:
        listen = self.data.get("listen", list(DEFAULT_LISTEN))
        if not isinstance(listen, list) or not listen:
            self.fault("listen", 'a list of endpoints such as ["tcp:8080"]', listen)
            return DEFAULT_LISTEN
        expected = 'a Twisted endpoint such as "tcp:8080"'
        for index, endpoint in enumerate(listen):
            if not isinstance(endpoint, str) or not re.match(r"[a-z][a-z0-9-]*:.", endpoint):
                self.fault(f"listen[{index}]", expected, endpoint)
            elif (port := _PORT.match(endpoint)) is not None and not _is_port(port[1]):
                self.fault(f"listen[{index}]", f"{expected}, with a port up to 65535", endpoint)
            elif (unix := _UNIX.match(endpoint)) is not None and not _is_socket_path(unix[1]):
                most = f"{expected}, with a path of at most {MOST_SOCKET_BYTES} bytes"
                self.fault(f"listen[{index}]", most, endpoint)
            elif (reason := self.endpoint_fault(endpoint)) is not None:
                self.fault(f"listen[{index}]", f"{expected} ({reason})", endpoint)
        return tuple(str(endpoint) for endpoint in listen)


_KEYS = (
    "storage_pairs",
    "writable_pairs_regex",
    "basic_auth",
    "read_auth",
    "public_listing",
    "status_auth",
    "trusted_proxies",
    "index",
    "s3_enabled",
    "s3_credentials",
    "s3_write",
    "lookup_order",
    "memcached_servers",
    "statsite",
    "listen",
    "workers",
    "reserve_bytes",
    "max_upload_bytes",
    "max_uploads",
    "max_connections",
    "require_mount",
    "cache_bytes",
    "log_format",
    "spool_directory",
    "spool_bytes",
    "state_directory",
    "scrub_days",
    "admin_socket",
    "secret",
    *RETIRED,
)


def _warnings(found: Config) -> list[str]:
    """What can be read and makes no sense."""
    return [
        *_set_warnings(found),
        *_credential_warnings(found),
        *_access_warnings(found),
        *_tier_warnings(found),
    ]


def _set_warnings(found: Config) -> Iterator[str]:
    """Roots within each other, and sets that take no samples by mistake."""
    sets, writable = found.sets, found.writable
    roots = [root for of_set in sets for root in of_set]
    for one, other in combinations(sorted(roots), 2):
        if other.startswith(one.rstrip("/") + "/"):
            yield f"storage_pairs: {other} is below {one}: expected disks that are mounted apart"
    matched = [root for root in roots if writable.search(root)]
    if roots and not matched:
        yield (
            f'writable_pairs_regex: "{writable.pattern}" matches no storage root: no set takes '
            "new samples"
        )
    for of_set in sets:
        others = [root for root in of_set if root not in matched]
        if matched and others and len(others) < len(of_set):
            first = next(root for root in of_set if root in matched)
            yield (
                f"writable_pairs_regex: matches {first} and not {others[0]}, which are of one set: "
                "the set takes no new samples"
            )


def _credential_warnings(found: Config) -> Iterator[str]:
    """Passwords that anybody would try. They are not shown."""
    for one in found.credentials:
        user, password = one.user, one.password
        if password == _EXAMPLE:
            yield f"basic_auth: the password of {user} is the example's, which everybody knows"
        elif password == user:
            yield f"basic_auth: the password of {user} is the user's name"


def _access_warnings(found: Config) -> Iterator[str]:
    """Doors that are open beside one that is shut."""
    if found.read_auth and found.public_listing:
        yield "public_listing: strangers may list the samples, which read_auth keeps from them"
    if found.status_auth and found.public_listing:
        yield "public_listing: strangers may list the samples, and not see the pages (status_auth)"
    for proxy in found.trusted_proxies:
        if proxy != "unix" and ip_network(proxy).prefixlen == 0:
            yield f"trusted_proxies: {proxy} is everybody: any client can say who it is"
    for index, endpoint in enumerate(found.listen):
        if endpoint.startswith("haproxy:") and not found.trusted_proxies:
            reason = "nobody is believed who the client is, as trusted_proxies names no proxy"
            yield f"listen[{index}]: {endpoint}: {reason}"


def _tier_warnings(found: Config) -> Iterator[str]:
    """An S3 that nobody asks, and figures that nobody can read."""
    if found.statsite is not None and re.search(r"[^A-Za-z0-9._-]", found.statsite.prefix):
        yield (
            f"statsite.prefix: {show(found.statsite.prefix)} means something else to statsd: "
            "expected letters, digits, and any of . _ -"
        )
    if found.s3 is not None and found.s3_write == "never" and "s3" not in found.lookup_order:
        yield 'lookup_order: S3 is enabled and never asked: expected "s3" in it'


def _authority(text: str) -> tuple[str, int | None] | None:
    """The host and the port of `host`, `host:port`, `[IPv6]:port` or an IPv6 address as it is."""
    if _is_ipv6(text):
        return text, None
    found = re.fullmatch(r"(?:\[([^\]]*)\]|([^\s\[\]/?#@:]+))(?::(\d{1,5}))?", text, re.ASCII)
    if found is None or (found[1] is not None and not _is_ipv6(found[1])):
        return None
    port = None if found[3] is None else int(found[3])
    if port is not None and not 0 < port < 65536:
        return None
    try:
        (found[1] or found[2]).encode("idna")
    except UnicodeError:  # no name (RFC 3490)
        return None
    return found[1] or found[2], port


def _is_port(digits: str) -> bool:
    return re.fullmatch(r"\d{1,5}", digits) is not None and int(digits) <= 65535


def _is_socket_path(quoted: str) -> bool:
    """Whether the system takes the path of an endpoint, in which a backslash quotes a colon."""
    path = re.sub(r"\\(.)", r"\1", quoted)
    return len(path.encode("utf-8", "surrogatepass")) <= MOST_SOCKET_BYTES


def _is_ipv6(text: str) -> bool:
    try:
        return IPv6Address(text).scope_id is None
    except ValueError:
        return False


def _is_network(text: str) -> bool:
    try:
        ip_network(text)
    except ValueError:  # also one with bits set behind its prefix
        return False
    return True


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f'duplicate key "{key}"')
    return dict(pairs)

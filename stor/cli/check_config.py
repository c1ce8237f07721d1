"""`stor check-config`: say whether a configuration can be used, and how it is understood."""

from collections.abc import Iterator
from typing import Any

from stor.cli.configured import add_command
from stor.config import Config
from stor.quantities import size


def add(commands: Any) -> None:
    """Add the command to a parser's."""
    parser = add_command(
        commands,
        "check-config",
        "say whether a configuration can be used",
        "stor check-config /etc/stor/config.json",
        lambda config, given: check(config),
        _told,
    )
    parser.description = (
        "Read a configuration, list every fault and what makes no sense, and say how it is "
        "understood; the disks are not looked at."
    )
    parser.add_argument("config", nargs="?", metavar="FILE")


def check(config: Config) -> str:
    """What a configuration comes to, and what deserves attention."""
    roots = sum(map(len, config.sets))
    summary = f"The configuration can be used (sets: {len(config.sets)}, disks: {roots})"
    warnings = [f"warning: {warning}" for warning in config.warnings]
    return "\n".join([*warnings, summary, *(f"  {line}" for line in _understood(config))])


def _told(config: Config, said: str) -> dict[str, Any]:
    """For JSON: what deserves attention, and the configuration in words."""
    words = dict(line.split(": ", 1) for line in _understood(config))
    return {"faults": [], "warnings": list(config.warnings), "understood": words}


def _understood(config: Config) -> Iterator[str]:
    """The configuration in words, a line for each thing. No password and no key of S3 is shown."""
    for number, roots in enumerate(config.sets, 1):
        takes = all(config.writable.search(root) for root in roots)
        role = "" if takes else " (read, takes no new samples: writable_pairs_regex)"
        yield f"set {number}: {', '.join(roots)}{role}"
    yield f"listens at: {', '.join(config.listen)}"
    users = ", ".join(dict.fromkeys(one.user for one in config.credentials))
    yield f"may store: {config.htpasswd.path if config.htpasswd is not None else users}"
    yield f"may read: {_users(config.read_auth)}"
    yield f"may list: {_users(not config.public_listing)}"
    yield f"may see /, /status and /metrics: {_users(config.status_auth)}"
    if config.trusted_proxies:
        yield f"says who the client is: {', '.join(config.trusted_proxies)}"
    if config.sets:
        yield f"kept free on each disk: {size(config.reserve_bytes)}"
    most = config.max_upload_bytes
    yield f"largest upload: {'no limit' if most is None else size(most)}"
    yield f"at once: {config.max_connections} connections, {config.max_uploads} uploads"
    if config.s3 is not None:
        s3, write = config.s3, config.s3_write
        order = " and then ".join(config.lookup_order) if config.sets else "s3"
        yield f"S3: bucket {s3.bucket} at {s3.endpoint}, written: {write}, asked: {order}"
    if config.memcached_servers:
        servers = ", ".join(f"{host}:{port}" for host, port in config.memcached_servers)
        yield f"location cache: {servers}"
    if config.statsite is not None:
        yield f"statsd: {config.statsite.host}:{config.statsite.port}, {config.statsite.prefix}"
    yield f"processes: {config.workers}"
    yield f"state: {config.state_directory}"


def _users(are_asked: bool) -> str:
    return "the same users" if are_asked else "everybody"

"""The rooms of the house, and which may know which.

`python -m tests.test_layers` writes them into CONTRIBUTING.md, in this order.
"""

import ast
import time
from pathlib import Path

import pytest

from stor.reactor import own_reactor

STOR = Path(__file__).parent.parent / "stor"
CONTRIBUTING = STOR.parent / "CONTRIBUTING.md"

#: A module imports only modules listed above it.
ORDER = [
    "standard",
    "digest",
    "shared",
    "errors",
    "paths",
    "quantities",
    "reader",
    "htpasswd",
    "config",
    "garbage",
    "descriptors",
    "quickstart",
    "logs",
    "threads",
    "reactor",
    "zero_copy",
    "statsd",
    "prometheus",
    "metrics",
    "status",
    "block_sums",
    "content",
    "disk.syscalls",
    "disk.errnos",
    "disk.durable",
    "disk.verified",
    "disk.page_cache",
    "disk.copy",
    "disk.disk",
    "state",
    "disk.journal",
    "disk.identity",
    "disk.probe",
    "disk.notes",
    "disk.base",
    "disk.walk",
    "disk.verification",
    "disk.loading",
    "disk.names",
    "disk.staged",
    "disk.partial",
    "disk.staged_batch",
    "disk.leaving",
    "index.memory",
    "index.table",
    "index.recent",
    "index.numbers",
    "index.merge",
    "index.index",
    "mirror.placement",
    "mirror.health",
    "mirror.group_commit",
    "mirror.pools",
    "mirror.member",
    "mirror.mirror",
    "mirror.names",
    "mirror.landed",
    "mirror.listing",
    "mirror.disk_order",
    "mirror.walking",
    "mirror.learning",
    "mirror.write",
    "mirror.turns",
    "mirror.repair",
    "mirror.search",
    "mirror.unstored",
    "mirror.outbox",
    "mirror.mirrors",
    "mirror.small_writes",
    "mirror.put",
    "mirror.move",
    "mirror.partial",
    "s3.boto",
    "s3.client",
    "s3.body",
    "s3.source",
    "s3.bucket",
    "s3.sending",
    "s3.queue",
    "s3.spool",
    "s3.incoming",
    "location",
    "lookup",
    "store",
    "summary",
    "growth",
    "jobs.job",
    "jobs.run",
    "jobs.reading",
    "jobs.kind",
    "jobs.jobs",
    "jobs.scrub",
    "jobs.scrubs",
    "jobs.walks",
    "jobs.drills",
    "jobs.refill",
    "jobs.rebuild",
    "jobs.rebuilds",
    "jobs.carry",
    "jobs.drain",
    "jobs.rebalance",
    "jobs.at_risk",
    "jobs.long_work",
    "explain",
    "explained",
    "http.answer",
    "http.access",
    "http.proxies",
    "http.auth",
    "http.conditions",
    "http.upload",
    "http.bulk",
    "http.batch",
    "http.feed",
    "http.page_style",
    "http.page",
    "http.status",
    "http.admin",
    "http.download",
    "http.pace",
    "http.parser",
    "http.fast_path",
    "http.request",
    "http.connections",
    "http.resumable",
    "http.channel",
    "http.site",
    "http.api",
    "options",
    "sockets",
    "gauges",
    "fleet",
    "administration",
    "app",
    "runtime",
    "server",
    "processes.handover",
    "processes.listener",
    "processes.memory",
    "processes.child",
    "processes.parent",
    "service",
    "starting",
    "client.listing",
    "client.transfer",
    "client.api",
    "client.memory",
    "client.files",
    "client.many",
    "client.put",
    "client.tar",
    "client.get",
    "client.relay",
    "client.position",
    "client.mirror",
    "client.missing",
    "client.settings",
    "client.progress",
    "client.command",
    "cli.configured",
    "cli.admin_client",
    "cli.adopt",
    "cli.at_risk",
    "cli.change",
    "cli.check_config",
    "cli.explain",
    "cli.jobs",
    "cli.waiting",
    "cli.rescan",
    "cli.scrub",
    "cli.drain",
    "cli.rebalance",
    "cli.status",
    "cli.main",
]

#: The rooms of `mirror/` that only decide: like `disk/` and `index/` they know no Twisted.
BLOCKING_MIRROR = ("mirror.health", "mirror.placement")

WINGS = ("disk", "index", "mirror", "s3", "http")

TIERS = ("disk.", "index.", "mirror.", "s3.")

MODULES = {
    ".".join(path.relative_to(STOR).with_suffix("").parts): path
    for path in sorted(STOR.rglob("*.py"))
    if path.name != "__init__.py"
}


def imported(path):
    """Every module that a file imports, wherever in it: `a.b` also for `from a import b`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own(path):
    """The modules of Stor that a file imports."""
    return {name.removeprefix("stor.") for name in imported(path)} & MODULES.keys()


def reached(module):
    """Every module of Stor that comes along when `module` is imported."""
    found, todo = set(), {module}
    while todo:
        found |= todo
        todo = set().union(*(own(MODULES[name]) for name in todo)) - found
    return found


def knows(path, package):
    return any(name == package or name.startswith(f"{package}.") for name in imported(path))


def rooms():
    """The table of rooms: each with the first line of its docstring."""
    rows = ["| room | what it is |", "|---|---|"]
    for module in ORDER:
        docstring = ast.get_docstring(ast.parse(MODULES[module].read_text()))
        rows.append(f"| `{module.replace('.', '/')}.py` | {docstring.splitlines()[0]} |")
    return "\n".join(rows)


def with_rooms(text):
    """CONTRIBUTING.md with the table of rooms as it should be."""
    before, begin, rest = text.partition("<!-- rooms -->\n")
    _, end, after = rest.partition("\n<!-- end of rooms -->")
    return f"{before}{begin}{rooms()}{end}{after}"


def test_contributing_shows_the_rooms():
    text = CONTRIBUTING.read_text()
    stale = "CONTRIBUTING.md shows other rooms: run `python -m tests.test_layers`"
    assert text == with_rooms(text), stale


def test_every_module_has_its_place_in_the_order():
    missing = sorted(MODULES.keys() - set(ORDER))
    assert not missing, f"put into ORDER, after all that they import: {', '.join(missing)}"
    gone = [module for module in ORDER if module not in MODULES]
    assert not gone, f"take out of ORDER, there are no such modules: {', '.join(gone)}"
    assert len(ORDER) == len(set(ORDER))


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module):
    before = ORDER[: ORDER.index(module)] if module in ORDER else []
    wrong = sorted(own(MODULES[module]) - set(before))
    assert not wrong, f"{module} imports what does not stand before it: {', '.join(wrong)}"


@pytest.mark.parametrize("module", MODULES)
def test_a_file_stays_under_600_lines(module):
    lines = len(MODULES[module].read_text().splitlines())
    assert lines < 600, f"stor/{module}: {lines} lines; a second noun is hiding in it"


@pytest.mark.parametrize(
    "module",
    [name for name in MODULES if name.startswith(("disk.", "index.")) or name in BLOCKING_MIRROR],
)
def test_blocking_work_on_disks_knows_no_twisted(module):
    guilty = sorted(name for name in reached(module) if knows(MODULES[name], "twisted"))
    assert not guilty, f"{module} brings Twisted along, by way of {', '.join(guilty)}"


def test_only_what_a_process_begins_with_imports_the_reactor():
    users = [name for name, path in MODULES.items() if knows(path, "twisted.internet.reactor")]
    assert users == ["reactor"]
    importers = [name for name, path in MODULES.items() if "reactor" in own(path)]
    assert sorted(importers) == ["client.command", "processes.child", "service"]


def test_the_wall_clock_is_read_for_dates_alone():
    """What takes time is measured by a clock that nobody sets: `time.monotonic`."""
    wall = {
        name: sorted(
            {
                node.attr
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Attribute)
                and node.attr in ("time", "time_ns", "now", "utcnow", "ctime", "gmtime")
                and isinstance(node.value, ast.Name)
                and node.value.id in ("time", "datetime")
            }
        )
        for name, path in MODULES.items()
    }
    assert {name: read for name, read in wall.items() if read} == {
        "administration": ["time"],  # when a job was begun, over restarts
        "app": ["time"],  # Date
        "disk.journal": ["time_ns"],  # when a segment was begun
        "disk.verified": ["time_ns"],  # how long ago a file has changed
        "disk.names": ["time_ns"],  # when a name was found, and which segments are old
        "runtime": ["time_ns"],  # when a sample was stored
        "index.numbers": ["time_ns"],  # when a name was recorded
        "gauges": ["time"],  # when a configuration was read
        "http.api": ["time"],  # Last-Modified, and for how long a disk has been away
        "logs": ["time"],  # when requests were over and lines were dropped
        "store": ["time"],  # since when a disk is in its state
    }


def test_the_reactor_has_a_clock_that_nobody_sets():
    assert own_reactor().seconds is time.monotonic


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("http.")])
def test_the_http_wing_knows_no_disk_and_no_s3(module):
    assert not {
        name for name in own(MODULES[module]) if name.startswith(("disk.", "mirror.", "s3."))
    }


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith(TIERS)])
def test_the_wings_of_the_tiers_do_not_know_each_other_nor_http(module):
    wing = module.partition(".")[0]
    below = {
        "disk": ("disk",),
        "index": ("disk", "index"),
        "mirror": ("disk", "index", "mirror"),
        "s3": ("s3",),
    }[wing]
    others = tuple(f"{other}." for other in WINGS if other not in below)
    assert not {name for name in own(MODULES[module]) if name.startswith(others)}


def test_the_client_knows_nothing_of_the_server():
    reach = set().union(*(reached(name) for name in MODULES if name.startswith("client.")))
    assert {name for name in reach if not name.startswith("client.")} == {
        "digest",
        "reactor",
        "threads",
    }


def test_what_is_said_of_imports_is_true_of_this_file(tmp_path):
    text = "import os.path\nfrom twisted.internet import reactor\n\ndef f():\n    import stor.x.y\n"
    path = tmp_path / "module.py"
    path.write_text(text)
    assert knows(path, "os")
    assert knows(path, "twisted.internet.reactor")
    assert knows(path, "stor.x")
    assert not knows(path, "stor.x.y.z")
    assert not knows(path, "twist")


if __name__ == "__main__":
    CONTRIBUTING.write_text(with_rooms(CONTRIBUTING.read_text()))

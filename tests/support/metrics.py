"""The figures as they are received: statsd's lines, Prometheus' text, and where they agree."""

import re
from collections import Counter, defaultdict

from prometheus_client.parser import text_string_to_metric_families

LINE = re.compile(r"([A-Za-z0-9_.-]+):(-?\d+(?:\.\d+)?)\|(c|ms)(?:\|@([\d.]+))?")

GETS, PUTS = ("GET", "HEAD"), ("POST", "PUT")


class Received:
    """What a statsd server has made of datagrams."""

    def __init__(self, prefix, datagrams=()):
        self.prefix = prefix
        self.kinds = {}
        self.rates = set()
        #: Sums by name, and the number of lines in each.
        self.totals = defaultdict(float)
        self.lines = Counter()
        for datagram in datagrams:
            self.add(datagram)

    def add(self, datagram):
        for line in datagram.decode("ascii").split("\n"):
            match = LINE.fullmatch(line)
            assert match, f"not a line of statsd: {line!r}"
            name, value, kind, rate = match.groups()
            assert name.startswith(f"{self.prefix}."), line
            name = name.removeprefix(f"{self.prefix}.")
            assert self.kinds.setdefault(name, kind) == kind
            self.totals[name] += float(value)
            self.lines[name] += 1
            self.rates.add(rate)

    @property
    def names(self):
        return set(self.totals)


class Exported:
    """A `GET /metrics`, parsed."""

    def __init__(self, text):
        self.families = list(text_string_to_metric_families(text))
        self.samples = [sample for family in self.families for sample in family.samples]

    @property
    def names(self):
        """The names of all samples, also of those that have no value yet."""
        suffixes = {"counter": ("_total",), "summary": ("_count", "_sum")}
        suffixes["histogram"] = ("_bucket", "_count", "_sum")
        return {f"{f.name}{s}" for f in self.families for s in suffixes.get(f.type, ("",))}

    def value(self, name, **wanted):
        """The sum of all samples that have these labels; a tuple matches any of its values."""
        assert name in self.names, f"{name} is not exported"
        return sum(s.value for s in self.samples if s.name == name and _has(s.labels, wanted))


def _has(labels, wanted):
    for label, values in wanted.items():
        if labels[label] not in (values if isinstance(values, tuple) else (values,)):
            return False
    return True


def disk_name(root):
    """A root as it appears in statsd's names."""
    return "-".join(re.findall("[A-Za-z0-9]+", str(root)))


def expectations(exported, roots):
    """Every name of statsd, and what its total should be by what Prometheus has been told."""
    value = exported.value
    found = {
        "request.get.count": _requests(value, GETS),
        "request.post.count": _requests(value, PUTS),
        "error.get.500.count": _requests(value, GETS, r"5.."),
        "error.post.unknown.count": _requests(value, PUTS, r"5(?!07).."),
        "healthcheck.count": value("stor_healthchecks_total"),
        "lookup.time": value("stor_lookup_duration_seconds_sum") * 1000,
        "cache.time": value("stor_cache_duration_seconds_sum") * 1000,
        "cache.hit": value("stor_cache_requests_total", result="hit"),
        "cache.miss": value("stor_cache_requests_total", result="miss"),
    }
    for result in ("write", "duplicate"):
        stored = value("stor_samples_stored_total", result=result)
        found[f"success.post.{result}.count"] = stored
    storages = {f"ok_old.{disk_name(root)}": str(root) for root in roots} | {"ok_hcp": "s3"}
    seconds = "stor_samples_served_duration_seconds"
    for name, storage in storages.items():
        sent = value("stor_samples_served_bytes_total", storage=storage)
        found[f"success.get.{name}.count"] = value(f"{seconds}_count", storage=storage)
        found[f"success.get.{name}.time"] = value(f"{seconds}_sum", storage=storage) * 1000
        found[f"success.get.{name}.size"] = sent
    for operation, name, cause in (
        ("get", "malformed_sha", "malformed_sha"),
        ("get", "not_found_old", "not_found_disk"),
        ("get", "not_found_hcp", "not_found_s3"),
        ("post", "malformed_sha", "malformed_sha"),
        ("post", "bad_sha", "bad_sha"),
        ("post", "no_space", "no_space"),
    ):
        errors = value("stor_http_request_errors_total", operation=operation, cause=cause)
        found[f"error.{operation}.{name}.count"] = errors
    return found | _attempts(exported)


def _requests(value, methods, status=r"\d+"):
    matching = tuple(str(code) for code in range(600) if re.fullmatch(status, str(code)))
    name = "stor_http_requests_total"
    return value(name, route="sample", method=methods, status=matching)


def _attempts(exported):
    """A bucket of 1 wide is a number of attempts."""
    found, below = {}, 0.0
    for n in range(9):
        up_to = exported.value("stor_lookup_attempts_bucket", le=f"{n}.0")
        found[f"lookup.attempt.{n}.count"] = up_to - below
        below = up_to
    return found


def assert_agree(received, exported, roots):
    """Both were told the same, of everything that both know."""
    expected = expectations(exported, roots)
    unknown = received.names - expected.keys()
    assert not unknown, f"names that the specification does not have: {sorted(unknown)}"
    for name, total in expected.items():
        # Times are sent with six digits after the point.
        tolerance = 1e-6 * (1 + received.lines[name])
        assert abs(received.totals[name] - total) <= tolerance, name
        assert received.kinds.get(name, "") in ("", "ms" if name.endswith("time") else "c")

"""The alerts as Prometheus evaluates them: when each fires, what it says, when it is silent."""

import json
import subprocess
from pathlib import Path

import attrs
import pytest
import yaml

RULES = Path(__file__).parents[2] / "monitoring" / "alerts.yml"

HOST = 'job="stor", instance="host"'
DISK = f'{HOST}, root="/disk1"'
WHERE = {"job": "stor", "instance": "host"}
ON_DISK = {**WHERE, "root": "/disk1"}

#: Prometheus gives the label `job` of its own another name.
JOB_STALLED = f'stor_job_stalled_seconds{{{HOST}, exported_job="7", kind="rebuild", about="/a /b"}}'

#: Minutes, more than any case lasts.
ALWAYS = 3000
TIB, GIB = 1024**4, 1024**3


def steady(value):
    """The same value every minute."""
    return f"{value}x{ALWAYS}"


def growing(step, begin=0):
    """A value that grows, or shrinks, every minute."""
    return f"{begin}{step:+}x{ALWAYS}"


def once(minute, step=1):
    """A counter that counts once, in that minute."""
    return f"0x{minute - 1} {step}x{ALWAYS}"


@attrs.frozen
class Case:
    """What Prometheus has scraped, and what an alert looks like after `minutes`.

    `summary` is `None` when it does not fire.
    """

    alert: str
    what: str
    series: dict
    minutes: int
    summary: str | None = None
    severity: str = "warning"
    labels: dict = attrs.field(factory=lambda: ON_DISK)

    def __str__(self):
        return f"{self.alert}: {self.what}"


def state(which):
    """The series of a disk that is in a state, and those of the others."""
    states = ("online", "read-only", "suspect", "offline")
    return {
        f'stor_disk_state{{{DISK}, state="{name}"}}': steady(int(name == which)) for name in states
    }


def unwritable(cause=None):
    """The series of a disk that takes no new samples for a cause, or is in order."""
    return {
        f'stor_disk_unwritable{{{DISK}, cause="{name}"}}': steady(int(name == cause))
        for name in ("full", "refused")
    }


def counter(name, labels, minute):
    """The series of a counter that counts once, in that minute."""
    return {f"{name}{{{labels}}}": once(minute)}


def requests(good, bad):
    """The answers to requests for samples, by the minute."""
    return {
        f'stor_http_requests_total{{{HOST}, route="sample", method="get", status="{status}"}}': (
            growing(each)
        )
        for status, each in (("200", good), ("503", bad))
    }


def scrubs(**minutes):
    """What scrubs of a disk found, once, in a minute each."""
    return {
        f"stor_scrub_{what}_total{{{DISK}}}": once(minutes[what]) if what in minutes else steady(0)
        for what in ("bad", "missing")
    }


def last_scrub(period):
    """A disk that was scrubbed when the clock began, and how often it should be, in seconds."""
    return {
        f"stor_scrub_age_seconds{{{DISK}}}": growing(60),
        f"stor_scrub_period_seconds{{{HOST}}}": steady(period),
    }


def complete(ratio, rebuilding):
    """The series of a disk that has so much of its set's samples."""
    return {
        f"stor_disk_complete_ratio{{{DISK}}}": steady(ratio),
        f"stor_disk_rebuilding{{{DISK}}}": steady(rebuilding),
    }


LOST, RELOADED = "stor_index_lost_samples_total", "stor_config_last_reload_successful"
NO_SPACE = f'{HOST}, operation="post", cause="no_space"'
DAMAGED = f'{HOST}, operation="get", cause="damaged"'
ERRORS = "stor_http_request_errors_total"

CASES = [
    Case("StorDown", "answers", {f"up{{{HOST}}}": steady(1)}, 10),
    Case("StorDown", "was away for a scrape", {f"up{{{HOST}}}": f"1x5 0 1x{ALWAYS}"}, 6),
    Case("StorDown", "another job is down", {'up{job="node", instance="host"}': steady(0)}, 10),
    Case(
        "StorDown",
        "does not answer",
        {f"up{{{HOST}}}": f"1x5 0x{ALWAYS}"},
        10,
        "Stor on host does not answer",
        "critical",
        WHERE,
    ),
    Case(
        "StorRestarting",
        "a restart and a reload",
        {f"process_start_time_seconds{{{HOST}}}": f"1x3 2x3 3x{ALWAYS}"},
        12,
    ),
    Case(
        "StorRestarting",
        "is started again and again",
        {f"process_start_time_seconds{{{HOST}}}": growing(1, 1)},
        15,
        "Stor on host was started 15 times in 15 minutes",
        labels=WHERE,
    ),
    *(
        Case(alert, f"disk {name}", state(name), 30)
        for alert, own in (("StorDiskOffline", "offline"), ("StorDiskSuspect", "suspect"))
        for name in ("online", "read-only", "suspect", "offline")
        if name != own
    ),
    Case(
        "StorDiskOffline",
        "disk offline",
        state("offline"),
        10,
        "/disk1 on host is offline",
        "critical",
        {**ON_DISK, "state": "offline"},
    ),
    Case(
        "StorDiskSuspect",
        "disk suspect",
        state("suspect"),
        10,
        "/disk1 on host has I/O errors and is not written",
        labels={**ON_DISK, "state": "suspect"},
    ),
    Case("StorDiskUnwritable", "in order", unwritable(), 30),
    Case(
        "StorDiskUnwritable",
        "held by the operator",
        {**state("read-only"), **unwritable()},
        30,
    ),
    *(
        Case(
            "StorDiskUnwritable",
            cause,
            {**state(which), **unwritable(cause)},
            10,
            f"/disk1 on host takes no new samples: {cause}",
            labels={**ON_DISK, "cause": cause},
        )
        for cause, which in (("full", "online"), ("refused", "read-only"))
    ),
    Case(
        "StorDiskDamage",
        "two days ago",
        counter("stor_disk_damaged_copies_total", DISK, 10),
        2880,
    ),
    Case(
        "StorDiskDamage",
        "a copy was bad, and is repaired",
        {
            **counter("stor_disk_damaged_copies_total", DISK, 10),
            **counter("stor_disk_restored_copies_total", DISK, 10),
        },
        20,
        "/disk1 on host had 1 damaged copies in a day",
    ),
    Case("StorDiskErrors", "long ago", counter("stor_disk_errors_total", DISK, 10), 120),
    Case(
        "StorDiskErrors",
        "one I/O error",
        counter("stor_disk_errors_total", DISK, 110),
        120,
        "/disk1 on host had I/O errors in the last hour",
    ),
    Case("StorDiskHangs", "is quick", counter("stor_disk_operations_refused_total", DISK, 10), 60),
    Case(
        "StorDiskHangs",
        "an operation was refused",
        counter("stor_disk_operations_refused_total", DISK, 58),
        60,
        "/disk1 on host has more to do than it gets done",
    ),
    Case(
        "StorDiskFilling",
        "fills slowly",
        {f"stor_disk_free_bytes{{{DISK}}}": growing(-GIB // 1024, TIB), **state("online")},
        600,
    ),
    Case(
        "StorDiskFilling",
        "fills fast, and takes no samples",
        {f"stor_disk_free_bytes{{{DISK}}}": growing(-GIB, TIB), **state("read-only")},
        600,
    ),
    Case(
        "StorDiskFilling",
        "fills fast",
        {f"stor_disk_free_bytes{{{DISK}}}": growing(-GIB, TIB), **state("online")},
        600,
        "/disk1 on host is full within four days",
    ),
    Case(
        "StorDiskFull",
        "has room",
        {f"stor_disk_free_bytes{{{DISK}}}": steady(20 * GIB), **state("online")},
        60,
    ),
    Case(
        "StorDiskFull",
        "takes no samples",
        {f"stor_disk_free_bytes{{{DISK}}}": steady(5 * GIB), **state("read-only")},
        60,
    ),
    Case(
        "StorDiskFull",
        "is nearly full",
        {f"stor_disk_free_bytes{{{DISK}}}": steady(5 * GIB), **state("online")},
        60,
        "/disk1 on host has 5GiB left",
    ),
    Case(
        "StorDiskOutOfInodes",
        "has enough",
        {f"stor_disk_free_inodes{{{DISK}}}": growing(-1, 10**9), **state("online")},
        600,
    ),
    Case(
        "StorDiskOutOfInodes",
        "uses them up",
        {f"stor_disk_free_inodes{{{DISK}}}": growing(-(10**6), 10**9), **state("online")},
        600,
        "/disk1 on host has no inodes within four days",
    ),
    Case(
        "StorTakesNoSamples",
        "one set of two",
        {f"stor_sets_writable{{{HOST}}}": steady(1), f"stor_sets{{{HOST}}}": steady(2)},
        30,
    ),
    Case(
        "StorTakesNoSamples",
        "S3 alone",
        {f"stor_sets_writable{{{HOST}}}": steady(0), f"stor_sets{{{HOST}}}": steady(0)},
        30,
    ),
    Case(
        "StorTakesNoSamples",
        "no set of two",
        {f"stor_sets_writable{{{HOST}}}": steady(0), f"stor_sets{{{HOST}}}": steady(2)},
        30,
        "No set of disks of host takes new samples",
        "critical",
        WHERE,
    ),
    Case("StorServerErrors", "one of a thousand", requests(999, 1), 60),
    Case("StorServerErrors", "nobody asks", requests(0, 0), 60),
    Case(
        "StorServerErrors",
        "one of fifty",
        requests(49, 1),
        60,
        "More than 1 % of the answers of host are 5xx",
        "critical",
        {"instance": "host"},
    ),
    Case("StorNoRoom", "half an hour ago", counter(ERRORS, NO_SPACE, 10), 40),
    Case("StorNoRoom", "another error", counter(ERRORS, DAMAGED, 38), 40),
    Case(
        "StorNoRoom",
        "an upload was 507",
        counter(ERRORS, NO_SPACE, 38),
        40,
        "host sends samples away: no room",
        "critical",
        {**WHERE, "operation": "post", "cause": "no_space"},
    ),
    Case("StorDamagedSamples", "two hours ago", counter(ERRORS, DAMAGED, 10), 130),
    Case(
        "StorDamagedSamples",
        "no good copy is left",
        counter(ERRORS, DAMAGED, 120),
        130,
        "host was asked for a sample of which no good copy is left",
        "critical",
        {**WHERE, "operation": "get", "cause": "damaged"},
    ),
    Case(
        "StorRepairsStuck",
        "go on",
        {
            f"stor_repairs_waiting{{{HOST}}}": steady(7),
            f"stor_repairs_total{{{HOST}}}": growing(1),
        },
        240,
    ),
    Case(
        "StorRepairsStuck",
        "none waits",
        {
            f"stor_repairs_waiting{{{HOST}}}": steady(0),
            f"stor_repairs_total{{{HOST}}}": steady(3),
        },
        240,
    ),
    Case(
        "StorRepairsStuck",
        "wait, and none is done",
        {
            f"stor_repairs_waiting{{{HOST}}}": steady(7),
            f"stor_repairs_total{{{HOST}}}": steady(3),
        },
        240,
        "7 repairs wait on host, and none was done for an hour",
        labels=WHERE,
    ),
    Case("StorS3Unavailable", "answers", {f"stor_s3_available{{{HOST}}}": steady(1)}, 60),
    Case(
        "StorS3Unavailable",
        "does not answer",
        {f"stor_s3_available{{{HOST}}}": steady(0)},
        60,
        "host cannot use S3",
        "critical",
        WHERE,
    ),
    Case("StorDiskIncomplete", "is complete", complete(1, 0), 120),
    Case("StorDiskIncomplete", "is made complete", complete(0.4, 1), 120),
    Case("StorDiskIncomplete", "a moment between two tries", complete(0.4, 0), 30),
    Case(
        "StorDiskIncomplete",
        "waits",
        complete(0.4, 0),
        120,
        "/disk1 on host may lack samples, and nothing makes it complete",
    ),
    Case("StorLostSamples", "one a day ago", counter(LOST, HOST, 10), 1450),
    Case(
        "StorLostSamples",
        "one now",
        counter(LOST, HOST, 10),
        15,
        "host was asked for a sample that it had stored and that no disk has any more",
        "critical",
        WHERE,
    ),
    Case("StorIndexWrong", "one last week", counter("stor_index_wrong_total", HOST, 10), 2900),
    Case(
        "StorIndexWrong",
        "one today",
        counter("stor_index_wrong_total", HOST, 10),
        15,
        "A 404 of host was wrong: somebody put samples on a disk by hand",
        labels=WHERE,
    ),
    Case("StorReloadRefused", "in force", {f"{RELOADED}{{{HOST}}}": steady(1)}, 60),
    Case("StorReloadRefused", "put right", {f"{RELOADED}{{{HOST}}}": f"1x3 0x3 1x{ALWAYS}"}, 9),
    Case(
        "StorReloadRefused",
        "refused",
        {f"{RELOADED}{{{HOST}}}": f"1x3 0x{ALWAYS}"},
        10,
        "host goes on with its old configuration: the new one was refused",
        labels=WHERE,
    ),
    Case(
        "StorLogLinesDropped",
        "some a day ago",
        counter("stor_log_lines_dropped_total", HOST, 10),
        1450,
    ),
    Case(
        "StorLogLinesDropped",
        "some now",
        counter("stor_log_lines_dropped_total", HOST, 10),
        15,
        "host has dropped log lines: whoever reads them is too slow, or gone",
        labels=WHERE,
    ),
    Case(
        "StorDrillFailed", "went well", {f'stor_drill_failed{{{HOST}, set="/a, /b"}}': steady(0)}, 9
    ),
    Case(
        "StorDrillFailed",
        "failed",
        {f'stor_drill_failed{{{HOST}, set="/a, /b"}}': steady(1)},
        9,
        "host did not mend the damage of its daily drill on /a, /b",
        severity="critical",
        labels={**WHERE, "set": "/a, /b"},
    ),
    Case("StorJobStuck", "comes on", {JOB_STALLED: steady(30)}, 120),
    Case(
        "StorJobStuck",
        "stands still",
        {JOB_STALLED: growing(60)},
        120,
        "A job on host has not come on for 2h 0m 0s: rebuild /a /b",
        labels={**WHERE, "exported_job": "7", "kind": "rebuild", "about": "/a /b"},
    ),
    Case(
        "StorS3CopiesAgeing",
        "are sent in minutes",
        {f"stor_s3_copies_oldest_age_seconds{{{HOST}}}": steady(300)},
        60,
    ),
    Case("StorAtRisk", "none", {f"stor_at_risk_samples{{{HOST}}}": steady(0)}, 300),
    Case("StorAtRisk", "mended soon", {f"stor_at_risk_samples{{{HOST}}}": f"5x40 0x{ALWAYS}"}, 62),
    Case(
        "StorAtRisk",
        "for more than an hour",
        {f"stor_at_risk_samples{{{HOST}}}": steady(5)},
        62,
        "5 samples on host lack a good copy",
        labels=WHERE,
    ),
    Case("StorScrubFoundDamage", "nothing was found", scrubs(), 90),
    Case("StorScrubFoundDamage", "long ago", scrubs(bad=10), 90),
    *(
        Case(
            "StorScrubFoundDamage",
            f"{what} an hour ago",
            scrubs(**{what: 60}),
            90,
            "A scrub of /disk1 on host found copies that were bad or missing",
        )
        for what in ("bad", "missing")
    ),
    Case("StorScrubLate", "in time", last_scrub(36_000), 1200),
    Case("StorScrubLate", "nobody wants any", last_scrub(0), 2900),
    Case(
        "StorScrubLate",
        "not for twice the time",
        last_scrub(36_000),
        1300,
        "/disk1 on host was not scrubbed for 21h 40m 0s",
    ),
    Case(
        "StorJobFailed", "done", {f'stor_jobs{{{HOST}, kind="scrub", state="done"}}': steady(3)}, 9
    ),
    Case(
        "StorJobFailed",
        "failed",
        {f'stor_jobs{{{HOST}, kind="scrub", state="failed"}}': steady(1)},
        9,
        "A job failed on host: scrub",
        labels={**WHERE, "kind": "scrub", "state": "failed"},
    ),
    Case(
        "StorS3CopiesAgeing",
        "are not sent",
        {f"stor_s3_copies_oldest_age_seconds{{{HOST}}}": steady(7260)},
        60,
        "A sample on host waits for 2h 1m 0s to be sent to S3",
        labels=WHERE,
    ),
]


def rules():
    """Every alert by its name."""
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["alert"]: rule for rule in group["rules"]}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_alert_fires_when_it_should_and_only_then(tmp_path, case):
    expected = []
    if case.summary is not None:
        annotations = {"summary": case.summary}
        description = rules()[case.alert]["annotations"].get("description")
        if description is not None:
            annotations["description"] = description
        expected = [
            {
                "exp_labels": {**case.labels, "severity": case.severity},
                "exp_annotations": annotations,
            }
        ]
    at = {"eval_time": f"{case.minutes}m", "alertname": case.alert, "exp_alerts": expected}
    document = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [
                    {"series": name, "values": values} for name, values in case.series.items()
                ],
                "alert_rule_test": [at],
            }
        ],
    }
    path = tmp_path / "test.yml"
    path.write_text(json.dumps(document))  # JSON is YAML, too
    ran = subprocess.run(
        ["promtool", "test", "rules", path], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_every_alert_is_seen_to_fire_and_to_be_silent():
    for fires in (True, False):
        tried = {case.alert for case in CASES if (case.summary is not None) is fires}
        assert tried == set(rules())

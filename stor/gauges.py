"""Figures of a Stor as it is now, read from its parts when somebody asks for them."""

import time
from collections.abc import Callable, Iterator, Mapping

from stor.http.upload import Uploads
from stor.jobs.job import State as JobState
from stor.jobs.long_work import LongWork
from stor.logs import LogStream
from stor.mirror.health import Cause, State
from stor.mirror.mirrors import Mirrors
from stor.prometheus import Family, counter, gauge
from stor.shared import Number
from stor.status import Work
from stor.store import DiskTier, Tiers
from stor.threads import ThreadPool

_STATES = [state.value for state in State]
_CAUSES = [cause.value for cause in Cause]


class DiskGauges:
    """How the storages are, for the process that looks after them.

    Implements `stor.prometheus.Collector`. Never asks a disk nor S3.
    """

    def __init__(
        self, mirrors: Mirrors, tiers: Callable[[], Tiers], work: Callable[[], Work] = Work
    ) -> None:
        """`tiers` are those of the configuration in force; `work` goes on beside requests."""
        self._mirrors = mirrors
        self._tiers = tiers
        self._work = work

    def collect(self) -> Iterator[Family]:
        """All of them, now."""
        yield from self._of_disks()
        yield from self._of_sets()
        yield from self._of_index()
        yield from self._of_s3()

    def _of_disks(self) -> Iterator[Family]:
        state = gauge(
            "stor_disk_state", "1 for the state that the disk is in.", labels=["root", "state"]
        )
        free = gauge("stor_disk_free_bytes", "Left for Stor, as last seen.", labels=["root"])
        inodes = gauge("stor_disk_free_inodes", "Files that can still be made.", labels=["root"])
        total = gauge("stor_disk_total_bytes", "Size of its file system.", labels=["root"])
        reserve = gauge("stor_disk_reserve_bytes", "Kept free on it.", labels=["root"])
        rebuilding = gauge(
            "stor_disk_rebuilding",
            "1 while it is compared with the others of its set, and given what it lacks.",
            labels=["root"],
        )
        errors = counter("stor_disk_errors", "I/O errors.", labels=["root"])
        complete = gauge(
            "stor_disk_complete_ratio",
            "1 for a disk that lacks no sample of its set, else how far it was compared.",
            labels=["root"],
        )
        unwritable = gauge(
            "stor_disk_unwritable",
            "1 for what keeps a disk from taking new samples; 0 where the operator does.",
            labels=["root", "cause"],
        )
        work = self._work()
        for member in self._mirrors.members:
            root, health = member.root, member.health
            now, hindered = health.state.value, health.unwritable
            hindrance = "" if hindered is None else hindered.cause.value
            for cause in _CAUSES:
                unwritable.add((root, cause), int(cause == hindrance))
            for each in _STATES:
                state.add((root, each), int(each == now))
            # Before its first probe nothing is known of a disk; it would seem to be full.
            if health.room.number:
                total.add((root,), health.room.total_bytes)
                free.add((root,), health.room.free_bytes)
                inodes.add((root,), health.room.free_inodes)
            errors.add((root,), health.errors_total)
            reserve.add((root,), health.reserve_bytes)
            complete.add((root,), 1 if member.complete else work.compared.get(root, 0))
            rebuilding.add((root,), int(not member.complete and root in work.rebuilding))
        yield from (state, unwritable, total, free, reserve, inodes, errors, complete, rebuilding)

    def _of_sets(self) -> Iterator[Family]:
        mirrors = self._mirrors.mirrors
        yield gauge("stor_sets", "Sets of disks.", len(mirrors))
        writable = sum(mirror.takes_samples for mirror in mirrors)
        yield gauge("stor_sets_writable", "Sets that take new samples.", writable)
        repairs = self._mirrors.repairs
        yield gauge("stor_repairs_waiting", "Samples with copies to be put back.", repairs.waiting)
        yield counter("stor_repairs", "Samples whose copies were put back.", repairs.mended_total)

    def _of_index(self) -> Iterator[Family]:
        names = self._mirrors.learning
        if names is None:
            return
        samples = gauge(
            "stor_set_samples", "Samples that the index knows on a set.", labels=["set"]
        )
        indexed = gauge(
            "stor_set_indexed", "1 for a set of which the index knows every sample.", labels=["set"]
        )
        for mirror in self._mirrors.mirrors:
            samples.add((str(mirror),), names.samples(mirror))
            indexed.add((str(mirror),), float(names.known(mirror)))
        yield from (samples, indexed)
        yield gauge(
            "stor_index_recent_samples",
            "Samples that came since the index's table was made.",
            names.recent,
        )
        yield gauge("stor_index_table_bytes", "Size of the table.", names.table_bytes)
        yield counter(
            "stor_index_audits", "Misses that were checked against the disks.", names.audits_total
        )
        yield counter("stor_index_wrong", "Those that were wrong.", names.wrong_total)
        yield counter(
            "stor_index_lost_samples",
            "Samples that the index knew and that no disk of their set has.",
            names.lost_total,
        )

    def _of_s3(self) -> Iterator[Family]:
        tiers = self._tiers()
        bucket, copies = tiers.bucket, tiers.copies
        available = gauge("stor_s3_available", "Whether S3 can be used: 1 or 0.")
        if bucket is not None:
            available.add((), float(bucket.fault is None))
        waiting = gauge("stor_s3_copies_waiting", "Samples to be sent to S3.")
        age = gauge(
            "stor_s3_copies_oldest_age_seconds", "How long the oldest of them has been waiting."
        )
        sent = counter("stor_s3_copies_sent", "Samples that were sent to S3.")
        if copies is not None:
            waiting.add((), len(copies))
            age.add((), copies.age_seconds)
            sent.add((), copies.sent_total)
        yield from (available, waiting, age, sent)


class JobGauges:
    """Long work. Implements `stor.prometheus.Collector`."""

    def __init__(self, work: LongWork) -> None:
        self._work = work

    def collect(self) -> Iterator[Family]:
        """All of them, now."""
        jobs = self._work.jobs.status()
        states = gauge(
            "stor_jobs", "Jobs, by what they do and by their state.", labels=["kind", "state"]
        )
        for kind in self._work.jobs.kinds:
            for state in JobState:
                alike = [job for job in jobs if (job.kind, job.state) == (kind, state.value)]
                states.add((kind, state.value), len(alike))
        yield states
        labels = ["job", "kind", "about"]
        done = gauge(
            "stor_job_done_ratio", "How much of a job that is not over is done.", labels=labels
        )
        eta = gauge(
            "stor_job_eta_seconds", "How long it still takes, as it goes now.", labels=labels
        )
        stalled = gauge(
            "stor_job_stalled_seconds",
            "How long a job has not come on that is not paused: it hangs, or waits for a disk.",
            labels=labels,
        )
        for job in jobs:
            if job.state in ("running", "paused", "waiting"):
                named = (str(job.id), job.kind, job.about)
                stalled.add(named, job.stalled_seconds)
                done.add(named, job.done)
                if job.eta_seconds is not None:
                    eta.add(named, job.eta_seconds)
        yield from (done, eta, stalled)
        yield from self._of_scrubs()
        yield from self._of_drills()
        yield gauge(
            "stor_at_risk_samples",
            "Samples with fewer good copies than their set has disks.",
            self._work.at_risk.total,
        )

    def _of_drills(self) -> Iterator[Family]:
        failed = gauge(
            "stor_drill_failed",
            "1 for a set that did not mend its last drill.",
            labels=["set"],
        )
        age = gauge(
            "stor_drill_age_seconds", "How long ago a set had its last drill.", labels=["set"]
        )
        now = self._work.jobs.wall_seconds()
        for mirror, outcome in self._work.drills.outcomes.items():
            failed.add((str(mirror),), int(outcome.fault is not None))
            age.add((str(mirror),), now - outcome.at)
        yield from (failed, age)

    def _of_scrubs(self) -> Iterator[Family]:
        yield gauge(
            "stor_scrub_period_seconds",
            "How long a pass over a disk may take (scrub_days); 0: there is none by itself.",
            self._work.scrubs.period_seconds,
        )
        ages = gauge(
            "stor_scrub_age_seconds",
            "How long ago a disk was scrubbed whole, or was first seen if it never was.",
            labels=["root"],
        )
        for root, seconds in self._work.scrubs.ages_seconds.items():
            ages.add((root,), seconds)
        yield ages
        whats = {
            "samples": "Copies that scrubs have read whole.",
            "bytes": "What they have read.",
            "bad": "Copies that scrubs found bad or could not read.",
            "missing": "Copies that scrubs did not find.",
            "mended": "Samples that scrubs have made whole.",
        }
        for name, what in whats.items():
            counted = counter(f"stor_scrub_{name}", what, labels=["root"])
            for root, counts in self._work.scrubs.disks.items():
                counted.add((root,), getattr(counts, name))
            yield counted


class Reloads:
    """How the last reload went; with several processes, as their parent says."""

    def __init__(
        self,
        good: Number | None = None,
        seconds: Number | None = None,
        wall_seconds: Callable[[], float] = time.time,
    ) -> None:
        """`good` and `seconds` are shared between processes, where there are several."""
        self._wall_seconds = wall_seconds
        self._good = good or Number()
        self._seconds = seconds or Number()

    def note(self, *, good: bool) -> None:
        """A configuration has been put in force, or refused."""
        self._good.value = int(good)
        if good:
            self._seconds.value = int(self._wall_seconds())

    def collect(self) -> Iterator[Family]:
        """All of them, now. See `stor.prometheus.Collector`."""
        yield gauge(
            "stor_config_last_reload_successful",
            "1 when the configuration that was read last is in force, 0 when it was refused.",
            self._good.value,
        )
        yield gauge(
            "stor_config_last_reload_success_timestamp_seconds",
            "When the one that is in force was read.",
            self._seconds.value,
        )


class ConnectionGauges:
    """Connections of clients. Implements `stor.prometheus.Collector`."""

    def __init__(self, connections: Callable[[], int]) -> None:
        """`connections` says how many are open."""
        self._connections = connections

    def collect(self) -> Iterator[Family]:
        """All of them, now."""
        yield gauge("stor_http_connections", "Connections that are open.", self._connections())


class LogGauges:
    """What became of log lines. Implements `stor.prometheus.Collector`."""

    def __init__(self, stream: LogStream) -> None:
        self._stream = stream

    def collect(self) -> Iterator[Family]:
        """All of them, now."""
        yield counter(
            "stor_log_lines_dropped",
            "Log lines that were dropped, as they were not read in time.",
            value=self._stream.dropped_lines,
        )


class WorkGauges:
    """What a process is doing. Implements `stor.prometheus.Collector`."""

    def __init__(
        self,
        disks: DiskTier,
        tiers: Callable[[], Tiers],
        uploads: Uploads,
        workers: Mapping[str, ThreadPool],
    ) -> None:
        """`tiers` are those in force; `workers` by the name of what they do."""
        self._disks = disks
        self._mirrors = disks.mirrors
        self._tiers = tiers
        self._uploads = uploads
        self._workers = workers

    def collect(self) -> Iterator[Family]:
        """All of them, now."""
        yield from self._of_work()
        yield from self._of_memory()
        yield from self._of_s3()

    def _of_work(self) -> Iterator[Family]:
        busy = gauge("stor_disk_operations_in_progress", "Waiting or being done.", labels=["root"])
        for member in self._mirrors.members:
            busy.add((member.root,), member.under_way)
        yield busy
        quarantined = counter(
            "stor_disk_quarantined_copies",
            "Bad copies that were moved to .stor/quarantine/.",
            labels=["root"],
        )
        for member in self._mirrors.members:
            quarantined.add((member.root,), member.disk.quarantined_total)
        yield quarantined
        uploads = self._uploads
        yield gauge(
            "stor_uploads_in_progress", "Uploads that are not answered yet.", uploads.in_progress
        )
        yield gauge("stor_upload_buffered_bytes", "Of bodies, in memory.", uploads.buffered_bytes)
        kept = self._disks.partials.kept
        yield gauge("stor_partial_uploads", "Kept, to be resumed.", kept.count)
        yield gauge("stor_partial_upload_bytes", "What they take on all disks.", kept.bytes)
        jobs = gauge(
            "stor_worker_jobs", "Jobs of a pool of threads, waiting or being done.", labels=["pool"]
        )
        for name, worker in self._workers.items():
            jobs.add((name,), worker.unfinished)
        yield jobs

    def _of_memory(self) -> Iterator[Family]:
        lookups = counter("stor_index_lookups", "Look-ups in the index.")
        if self._mirrors.names is not None:
            lookups.add((), self._mirrors.names.lookups_total)
        yield lookups
        hot = self._disks.hot
        yield counter("stor_hot_hits", "Samples that were in memory.", hot.hits)
        yield counter("stor_hot_misses", "Samples that were not.", hot.misses)
        yield gauge("stor_hot_samples", "Samples in memory.", len(hot))
        yield gauge("stor_hot_bytes", "What they take.", hot.used_bytes)
        cached = self._mirrors.cached_total
        yield counter("stor_page_cache_hits", "Samples that the kernel had in memory.", cached)

    def _of_s3(self) -> Iterator[Family]:
        requests = counter("stor_s3_requests", "Samples that S3 was asked for.")
        errors = counter("stor_s3_errors", "Those that it gave no answer to.")
        bucket = self._tiers().bucket
        if bucket is not None:
            requests.add((), bucket.requests)
            errors.add((), bucket.errors)
        yield from (requests, errors)

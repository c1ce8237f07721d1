"""Figures of a Stor as it is now, read from its parts when somebody asks for them."""

from collections.abc import Iterator, Mapping

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from stor.http.upload import Uploads
from stor.jobs.job import State as JobState
from stor.jobs.jobs import Jobs
from stor.logs import LogStream
from stor.mirror.health import Cause, State
from stor.mirror.mirrors import Mirrors
from stor.store import Store
from stor.threads import ThreadPool


class DiskGauges:
    """How the storages are, for the process that looks after them.

    Implements `stor.prometheus.Collector`. Never asks a disk nor S3.
    """

    def __init__(self, mirrors: Mirrors, store: Store) -> None:
        self._mirrors = mirrors
        self._store = store

    def collect(self) -> Iterator[Metric]:
        """All of them, now."""
        yield from self._of_disks()
        yield from self._of_sets()
        yield from self._of_index()
        yield from self._of_s3()

    def _of_disks(self) -> Iterator[Metric]:
        state = GaugeMetricFamily(
            "stor_disk_state", "1 for the state that the disk is in.", labels=["root", "state"]
        )
        free = GaugeMetricFamily(
            "stor_disk_free_bytes", "Left for Stor, as last seen.", labels=["root"]
        )
        inodes = GaugeMetricFamily(
            "stor_disk_free_inodes", "Files that can still be made.", labels=["root"]
        )
        errors = CounterMetricFamily("stor_disk_errors", "I/O errors.", labels=["root"])
        complete = GaugeMetricFamily(
            "stor_disk_complete_ratio",
            "1 for a disk that lacks no sample of its set, else how far it was compared.",
            labels=["root"],
        )
        unwritable = GaugeMetricFamily(
            "stor_disk_unwritable",
            "1 for what keeps a disk from taking new samples; 0 where the operator does.",
            labels=["root", "cause"],
        )
        for member in self._mirrors.members:
            root, health = member.root, member.health
            causes = dict.fromkeys(Cause, 0.0)
            if health.unwritable is not None:
                causes[health.unwritable.cause] = 1.0
            for cause, value in causes.items():
                unwritable.add_metric([root, cause.value], value)
            for each in State:
                state.add_metric([root, each.value], float(health.state is each))
            # Before its first probe nothing is known of a disk; it would seem to be full.
            if health.room.number:
                free.add_metric([root], health.room.free_bytes)
                inodes.add_metric([root], health.room.free_inodes)
            errors.add_metric([root], health.errors_total)
            done = 1.0 if member.complete else self._mirrors.rebuilds.progress(member) or 0.0
            complete.add_metric([root], done)
        yield from (state, unwritable, free, inodes, errors, complete)

    def _of_sets(self) -> Iterator[Metric]:
        mirrors = self._mirrors.mirrors
        yield GaugeMetricFamily("stor_sets", "Sets of disks.", len(mirrors))
        writable = sum(mirror.takes_samples for mirror in mirrors)
        yield GaugeMetricFamily("stor_sets_writable", "Sets that take new samples.", writable)
        repairs = self._mirrors.repairs
        yield GaugeMetricFamily(
            "stor_repairs_waiting", "Samples with copies to be put back.", repairs.waiting
        )
        yield CounterMetricFamily(
            "stor_repairs", "Samples whose copies were put back.", repairs.mended_total
        )

    def _of_index(self) -> Iterator[Metric]:
        names = self._mirrors.learning
        if names is None:
            return
        samples = GaugeMetricFamily(
            "stor_set_samples", "Samples that the index knows on a set.", labels=["set"]
        )
        indexed = GaugeMetricFamily(
            "stor_set_indexed", "1 for a set of which the index knows every sample.", labels=["set"]
        )
        for mirror in self._mirrors.mirrors:
            samples.add_metric([str(mirror)], names.samples(mirror))
            indexed.add_metric([str(mirror)], float(names.known(mirror)))
        yield from (samples, indexed)
        yield GaugeMetricFamily(
            "stor_index_recent_samples",
            "Samples that came since the index's table was made.",
            names.recent,
        )
        yield GaugeMetricFamily("stor_index_table_bytes", "Size of the table.", names.table_bytes)
        yield CounterMetricFamily(
            "stor_index_audits", "Misses that were checked against the disks.", names.audits_total
        )
        yield CounterMetricFamily("stor_index_wrong", "Those that were wrong.", names.wrong_total)
        yield CounterMetricFamily(
            "stor_index_lost_samples",
            "Samples that the index knew and that no disk of their set has.",
            names.lost_total,
        )

    def _of_s3(self) -> Iterator[Metric]:
        bucket, copies = self._store.bucket, self._store.copies
        available = GaugeMetricFamily("stor_s3_available", "Whether S3 can be used: 1 or 0.")
        if bucket is not None:
            available.add_metric([], float(bucket.fault is None))
        waiting = GaugeMetricFamily("stor_s3_copies_waiting", "Samples to be sent to S3.")
        age = GaugeMetricFamily(
            "stor_s3_copies_oldest_age_seconds", "How long the oldest of them has been waiting."
        )
        sent = CounterMetricFamily("stor_s3_copies_sent", "Samples that were sent to S3.")
        if copies is not None:
            waiting.add_metric([], len(copies))
            age.add_metric([], copies.age_seconds)
            sent.add_metric([], copies.sent_total)
        yield from (available, waiting, age, sent)


class JobGauges:
    """Long work. Implements `stor.prometheus.Collector`."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    def collect(self) -> Iterator[Metric]:
        """All of them, now."""
        views = self._jobs.views()
        states = GaugeMetricFamily(
            "stor_jobs", "Jobs, by what they do and by their state.", labels=["kind", "state"]
        )
        for state in JobState:
            count = sum(view["state"] == state.value for view in views)
            states.add_metric(["scrub", state.value], count)
        yield states
        labels = ["job", "kind", "about"]
        done = GaugeMetricFamily(
            "stor_job_done_ratio", "How much of a job that is not over is done.", labels=labels
        )
        eta = GaugeMetricFamily(
            "stor_job_eta_seconds", "How long it still takes, as it goes now.", labels=labels
        )
        for view in views:
            if view["state"] in ("running", "paused", "waiting"):
                named = [str(view["id"]), view["kind"], view["about"]]
                done.add_metric(named, view["done"])
                if view["eta_seconds"] is not None:
                    eta.add_metric(named, view["eta_seconds"])
        yield from (done, eta)
        yield from self._of_scrubs()
        yield GaugeMetricFamily(
            "stor_at_risk_samples",
            "Samples with fewer good copies than their set has disks.",
            self._jobs.at_risk_total,
        )

    def _of_scrubs(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "stor_scrub_period_seconds",
            "How long a pass over a disk may take (scrub_days); 0: there is none by itself.",
            self._jobs.period_seconds,
        )
        ages = GaugeMetricFamily(
            "stor_scrub_age_seconds",
            "How long ago a disk was scrubbed whole, or was first seen if it never was.",
            labels=["root"],
        )
        for root, seconds in self._jobs.ages_seconds.items():
            ages.add_metric([root], seconds)
        yield ages
        whats = {
            "samples": "Copies that scrubs have read whole.",
            "bytes": "What they have read.",
            "bad": "Copies that scrubs found bad or could not read.",
            "missing": "Copies that scrubs did not find.",
            "mended": "Samples that scrubs have made whole.",
        }
        for name, what in whats.items():
            counter = CounterMetricFamily(f"stor_scrub_{name}", what, labels=["root"])
            for root, counts in self._jobs.counts.items():
                counter.add_metric([root], getattr(counts, name))
            yield counter


class LogGauges:
    """What became of log lines. Implements `stor.prometheus.Collector`."""

    def __init__(self, stream: LogStream) -> None:
        self._stream = stream

    def collect(self) -> Iterator[Metric]:
        """All of them, now."""
        yield CounterMetricFamily(
            "stor_log_lines_dropped",
            "Log lines that were dropped, as they were not read in time.",
            value=self._stream.dropped_lines,
        )


class WorkGauges:
    """What a process is doing. Implements `stor.prometheus.Collector`."""

    def __init__(
        self,
        mirrors: Mirrors,
        store: Store,
        uploads: Uploads,
        workers: Mapping[str, ThreadPool],
    ) -> None:
        """`workers` by the name of what they do."""
        self._mirrors = mirrors
        self._store = store
        self._uploads = uploads
        self._workers = workers

    def collect(self) -> Iterator[Metric]:
        """All of them, now."""
        yield from self._of_work()
        yield from self._of_memory()
        yield from self._of_s3()

    def _of_work(self) -> Iterator[Metric]:
        busy = GaugeMetricFamily(
            "stor_disk_operations_in_progress", "Waiting or being done.", labels=["root"]
        )
        for member in self._mirrors.members:
            busy.add_metric([member.root], member.under_way)
        yield busy
        quarantined = CounterMetricFamily(
            "stor_disk_quarantined_copies",
            "Bad copies that were moved to .stor/quarantine/.",
            labels=["root"],
        )
        for member in self._mirrors.members:
            quarantined.add_metric([member.root], member.disk.quarantined_total)
        yield quarantined
        uploads = self._uploads
        yield GaugeMetricFamily(
            "stor_uploads_in_progress", "Uploads that are not answered yet.", uploads.in_progress
        )
        yield GaugeMetricFamily(
            "stor_upload_buffered_bytes", "Of bodies, in memory.", uploads.buffered_bytes
        )
        jobs = GaugeMetricFamily(
            "stor_worker_jobs", "Jobs of a pool of threads, waiting or being done.", labels=["pool"]
        )
        for name, worker in self._workers.items():
            jobs.add_metric([name], worker.unfinished)
        yield jobs

    def _of_memory(self) -> Iterator[Metric]:
        lookups = CounterMetricFamily("stor_index_lookups", "Look-ups in the index.")
        if self._mirrors.names is not None:
            lookups.add_metric([], self._mirrors.names.lookups_total)
        yield lookups
        hot = self._store.hot
        yield CounterMetricFamily("stor_hot_hits", "Samples that were in memory.", hot.hits)
        yield CounterMetricFamily("stor_hot_misses", "Samples that were not.", hot.misses)
        yield GaugeMetricFamily("stor_hot_samples", "Samples in memory.", len(hot))
        yield GaugeMetricFamily("stor_hot_bytes", "What they take.", hot.used_bytes)

    def _of_s3(self) -> Iterator[Metric]:
        requests = CounterMetricFamily("stor_s3_requests", "Samples that S3 was asked for.")
        errors = CounterMetricFamily("stor_s3_errors", "Those that it gave no answer to.")
        if self._store.bucket is not None:
            requests.add_metric([], self._store.bucket.requests)
            errors.add_metric([], self._store.bucket.errors)
        yield from (requests, errors)

"""Jobs: paused, resumed and cancelled, one at a disk, at a rate, kept over restarts, and ETAs."""

import errno
import json

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import LogLevel, capturedLogs, formatEvent

from stor.jobs.job import Job, Rate, Scope, Speed, State
from stor.jobs.jobs import JOBS_FILE, MOST_OVER, SETTLE_SECONDS
from stor.jobs.kind import Impossible, Kind, NotNow, Refused
from stor.jobs.run import YIELD_SECONDS, Halted
from tests.support.http import no_bug_logged
from tests.support.jobs import DAY, KeptJobs, follow, pass_seconds, scrub, view, views
from tests.support.pools import HeldPool
from tests.test_scrub import alike, fill, samples_read, stor


@pytest.fixture(autouse=True)
def _no_bug():
    with no_bug_logged():
        yield


@pytest.fixture
def rig(quick_path):
    rig = stor(quick_path)
    fill(rig, (50,), seeds=range(8))
    return rig


def root(rig, number=0):
    return rig.members[number].root


def steps(rig, pool, number):
    for _ in range(number):
        pool.release(1)
        rig.clock.advance(0)


def states(jobs):
    return {one["id"]: one["state"] for one in views(jobs)}


class Hopeless(Kind):
    """What always fails, and is due for as long as it has not been done."""

    name = "hopeless"

    def __init__(self, jobs, error):
        self.jobs, self.error, self.tries = jobs, error, 0
        jobs.take_up(self)

    def due(self):
        # Not without end, whatever becomes of it.
        if self.tries < 100 and all(job.state.over for job in self.jobs.of(self)):
            self.jobs.add(self, Scope())

    async def work(self, run):
        self.tries += 1
        raise self.error


@pytest.mark.parametrize("error", [Impossible("never"), NotNow("not now")], ids=repr)
def test_what_fails_and_is_due_again_is_tried_once_a_look_at_the_disks(rig, error):
    jobs = KeptJobs().begin(rig)
    hopeless = Hopeless(jobs, error)
    for looks in range(1, 4):
        jobs.resume()
        rig.clock.pump([0.0] * 50)
        assert hopeless.tries == looks


def test_a_job_is_paused_and_goes_on_where_it_was(rig):
    kept, pool = KeptJobs(), HeldPool()
    jobs = kept.begin(rig, pool=pool)
    (job,) = scrub(jobs, [root(rig)])
    while view(jobs)["samples_done"] < 3:
        steps(rig, pool, 1)
    jobs.pause(job.id)
    steps(rig, pool, 50)
    assert view(jobs)["state"] == "paused"
    done = view(jobs)["samples_done"]
    assert done in (3, 4)  # what was under way
    pass_seconds(rig, 1000, 10)
    assert view(jobs)["samples_done"] == done
    jobs.go_on(job.id)
    steps(rig, pool, 50)
    assert (view(jobs)["state"], view(jobs)["samples_done"]) == ("done", 8)
    assert len(samples_read(rig)) == 8


def test_a_paused_job_is_paused_after_a_restart_and_a_waiting_read_is_not_lost(rig):
    kept, pool = KeptJobs(), HeldPool()
    jobs = kept.begin(rig, pool=pool)
    (job,) = scrub(jobs, [root(rig)])
    steps(rig, pool, 4)
    jobs.pause(job.id)
    again = KeptJobs(kept.data).begin(rig)
    pass_seconds(rig, 100)
    assert view(again)["state"] == "paused"
    again.go_on(job.id)
    assert view(again)["state"] == "done"


def test_a_resume_right_after_a_pause_begins_no_second_run(rig):
    pool = HeldPool()
    jobs = KeptJobs().begin(rig, pool=pool)
    (job,) = scrub(jobs, [root(rig)])
    steps(rig, pool, 4)
    for _ in range(3):
        jobs.pause(job.id)
        jobs.go_on(job.id)
    assert len(pool.held) == 1
    steps(rig, pool, 60)
    assert view(jobs)["state"] == "done"
    assert view(jobs)["samples_done"] == 8


def test_a_cancelled_job_ends_and_is_told_of_as_such(rig):
    kept, pool = KeptJobs(), HeldPool()
    jobs = kept.begin(rig, pool=pool)
    (job,) = scrub(jobs, [root(rig)])
    steps(rig, pool, 3)
    jobs.cancel(job.id)
    steps(rig, pool, 50)
    assert view(jobs)["state"] == "cancelled"
    assert view(jobs)["ended"] is not None
    for change in (jobs.pause, jobs.go_on, jobs.cancel, lambda n: jobs.set_rate(n, Rate())):
        with pytest.raises(Refused, match=f"job {job.id} is cancelled"):
            change(job.id)
    assert view(KeptJobs(kept.data).begin(rig))["state"] == "cancelled"


def test_a_job_that_there_is_not_is_said_in_one_line(rig):
    jobs = KeptJobs().begin(rig)
    for change in (jobs.pause, jobs.go_on, jobs.cancel, lambda n: jobs.set_rate(n, Rate())):
        with pytest.raises(Refused, match="job 7: there is none with this number"):
            change(7)


def test_a_root_that_is_in_no_set_is_refused_and_nothing_begins(rig):
    jobs = KeptJobs().begin(rig)
    with pytest.raises(Refused, match="/nowhere: in no set: expected a storage root, one of /"):
        scrub(jobs, [root(rig), "/nowhere"])
    assert views(jobs) == []


def test_two_scrubs_of_the_same_disk_are_one(rig):
    jobs = KeptJobs().begin(rig, pool=HeldPool())
    (first,) = scrub(jobs, [root(rig), root(rig)])
    (second,) = scrub(jobs, [root(rig)])
    assert first is second
    assert scrub(jobs) == [first, scrub(jobs, [root(rig, 1)])[0]]


def test_two_jobs_at_one_disk_take_turns(rig):
    pool = HeldPool()
    jobs = KeptJobs().begin(rig, pool=pool)
    (whole,) = scrub(jobs, [root(rig)])
    (part,) = scrub(jobs, [root(rig)], prefix="a")
    assert states(jobs) == {whole.id: "running", part.id: "waiting"}
    assert view(jobs)["reason"] == f"job {whole.id} is at the same disk"
    steps(rig, pool, 100)
    assert set(states(jobs).values()) == {"done"}


def test_what_somebody_asks_for_comes_before_a_pass_that_nobody_did(rig):
    pool = HeldPool()
    jobs = KeptJobs().begin(rig, pool=pool, scrub_days=14)
    pass_seconds(rig, SETTLE_SECONDS, 60)
    jobs.resume()
    steps(rig, pool, 3)
    own = next(one for one in views(jobs) if one["about"] == root(rig))
    assert own["continuous"]
    scrub(jobs, [root(rig)])
    steps(rig, pool, 100)
    asked = view(jobs)
    assert asked["state"] == "done"
    assert view(jobs, own["id"])["state"] == "running"


def test_a_pass_takes_the_days_that_it_may_and_then_the_next_one_begins(rig):
    jobs = KeptJobs().begin(rig, scrub_days=14)
    jobs.resume()
    assert views(jobs) == []  # a start has other work to do
    pass_seconds(rig, SETTLE_SECONDS, 60)
    jobs.resume()
    begun = rig.wall_seconds()
    for day in (3.5, 7, 10.5):
        pass_seconds(rig, begun + day * DAY - rig.wall_seconds(), 600)
        for one in views(jobs):
            assert one["done"] == pytest.approx(day / 14, abs=0.2)
            assert one["state"] == "running"
            left = (1 - one["done"]) * 14 * DAY
            assert one["eta_seconds"] == pytest.approx(left, rel=0.8)
    pass_seconds(rig, 3.6 * DAY, 600)
    assert {one["state"] for one in views(jobs)[:2]} == {"done"}
    assert set(jobs.kinds["scrub"].scrubbed) == {root(rig), root(rig, 1)}
    assert jobs.kinds["scrub"].scrubbed[root(rig)] == pytest.approx(
        begun + 14 * DAY, abs=0.15 * 14 * DAY
    )
    jobs.resume()
    assert [one["about"] for one in views(jobs)[2:]] == [root(rig), root(rig, 1)]
    again = KeptJobs(jobs.encode()).begin(rig, scrub_days=14)
    assert [one["about"] for one in views(again)] == [root(rig), root(rig, 1)] * 2
    assert again.kinds["scrub"].scrubbed == jobs.kinds["scrub"].scrubbed


def test_a_pass_over_next_to_nothing_is_not_made_over_and_over(quick_path):
    rig = stor(quick_path)
    fill(rig, (1000,), seeds=range(1))
    jobs = KeptJobs().begin(rig, scrub_days=14)
    pass_seconds(rig, SETTLE_SECONDS, 60)
    for _ in range(5):
        jobs.resume()
        pass_seconds(rig, 600, 60)
    assert len(views(jobs)) == len(rig.roots)
    assert {one["state"] for one in views(jobs)} == {"done"}
    again = KeptJobs(jobs.encode()).begin(rig, scrub_days=14)
    pass_seconds(rig, SETTLE_SECONDS, 60)
    again.resume()
    assert len(views(again)) == len(rig.roots)
    pass_seconds(rig, 14 * DAY, 600)
    again.resume()
    assert len(views(again)) == 2 * len(rig.roots)


def test_a_pass_goes_on_that_began_by_a_clock_that_was_years_ahead(rig):
    jobs = KeptJobs().begin(rig, scrub_days=14)
    pass_seconds(rig, SETTLE_SECONDS, 60)
    jobs.resume()
    value = json.loads(jobs.encode())
    for one in value["jobs"]:
        one["began"] += 3650 * DAY
    value["scrubbed"] = {root(rig): rig.wall_seconds() + 3650 * DAY}
    jobs = KeptJobs(json.dumps(value).encode()).begin(rig, scrub_days=14)
    assert min(jobs.kinds["scrub"].ages_seconds.values()) >= 0
    pass_seconds(rig, SETTLE_SECONDS, 60)
    jobs.resume()
    pass_seconds(rig, 7 * DAY, 600)
    assert all(0.3 < one["done"] < 1 for one in views(jobs)[:2])
    value["jobs"] = []
    jobs = KeptJobs(json.dumps(value).encode()).begin(rig, scrub_days=14)
    pass_seconds(rig, SETTLE_SECONDS, 60)
    jobs.resume()
    assert [one["about"] for one in views(jobs)] == [root(rig), root(rig, 1)]


def test_a_pass_that_is_given_up_begins_again_when_its_time_comes(rig):
    jobs = KeptJobs().begin(rig, scrub_days=1)
    pass_seconds(rig, SETTLE_SECONDS, 60)
    jobs.resume()
    for one in views(jobs):
        jobs.cancel(one["id"])
    pass_seconds(rig, DAY / 2, 600)
    jobs.resume()
    assert len(views(jobs)) == 2
    pass_seconds(rig, DAY / 2, 600)
    jobs.resume()
    assert len(views(jobs)) == 4


def test_passes_follow_the_configuration(rig):
    jobs = KeptJobs().begin(rig, scrub_days=14)
    pass_seconds(rig, SETTLE_SECONDS, 60)
    jobs.resume()
    follow(jobs, 0)
    rig.clock.advance(0)
    assert views(jobs) == []
    follow(jobs, 0.001)
    assert len(views(jobs)) == 2
    pass_seconds(rig, 120)
    assert {one["state"] for one in views(jobs)[:2]} == {"done"}


def test_neighbours_of_a_bad_copy_are_read_at_once(rig):
    for copy in rig.samples():
        if copy.is_relative_to(rig.roots[0]):
            copy.write_bytes(b"")
            break
    jobs = KeptJobs().begin(rig, scrub_days=14)
    pass_seconds(rig, SETTLE_SECONDS, 60)
    jobs.resume()
    pass_seconds(rig, 14 * DAY / 2, 600)
    first = view(jobs, 1)
    assert (first["bad"], first["mended"], first["state"]) == (1, 1, "done")


@pytest.mark.parametrize(
    ("rate", "seconds"), [(Rate(bytes_per_second=8192), 32), (Rate(samples_per_second=2), 4)]
)
def test_a_rate_is_kept(quick_path, rate, seconds):
    rig = stor(quick_path)
    fill(rig, (32768,), seeds=range(8))
    jobs = KeptJobs().begin(rig, batch_directories=100)
    scrub(jobs, [root(rig)], rate=rate)
    took = 0
    while view(jobs)["state"] == "running":
        rig.clock.advance(0.1)
        took += 0.1
    assert took == pytest.approx(seconds, rel=0.2)


def test_a_rate_is_changed_while_a_job_runs(rig):
    jobs = KeptJobs().begin(rig)
    (job,) = scrub(jobs, [root(rig)], rate=Rate(bytes_per_second=0.001))
    pass_seconds(rig, 100)
    assert view(jobs)["samples_done"] == 1
    jobs.set_rate(job.id, Rate())
    assert view(jobs)["state"] == "done"


def test_a_job_waits_for_clients_of_its_disk_but_not_for_ever(rig):
    jobs = KeptJobs()
    busy = HeldPool()
    member = rig.members[0]
    member.work(busy, lambda: None)  # a client's read that takes its time
    jobs = jobs.begin(rig)
    scrub(jobs, [root(rig)])
    rig.clock.advance(YIELD_SECONDS * 0.9)
    assert view(jobs)["samples_done"] == 0
    before = rig.clock.seconds()
    while view(jobs)["samples_done"] < 2:
        rig.clock.advance(0.01)
    assert rig.clock.seconds() - before > YIELD_SECONDS
    busy.release()
    rig.clock.advance(0.02)
    assert view(jobs)["state"] == "done"


def test_a_disk_that_is_lost_in_the_middle_is_waited_for(rig):
    pool = HeldPool()
    jobs = KeptJobs().begin(rig, pool=pool)
    scrub(jobs, [root(rig)])
    while view(jobs)["samples_done"] < 3:
        steps(rig, pool, 1)
    rig.roots[0].rename(rig.roots[0].with_name("away"))
    steps(rig, pool, 5)
    rig.rounds(2)
    jobs.resume()
    steps(rig, pool, 5)
    job = view(jobs)
    assert (job["state"], job["reason"]) == ("waiting", f"{root(rig)}: not a directory")
    assert (job["bad"], job["missing"]) == (0, 0)
    rig.roots[0].with_name("away").rename(rig.roots[0])
    rig.rounds(2)
    jobs.resume()
    steps(rig, pool, 50)
    assert (view(jobs)["state"], view(jobs)["samples_done"]) == ("done", 8)


def test_a_disk_whose_every_read_fails_is_waited_for_and_its_copies_are_not_called_bad(rig):
    pool = HeldPool()
    jobs = KeptJobs().begin(rig, pool=pool)
    scrub(jobs, [root(rig)])
    while view(jobs)["samples_done"] < 3:
        steps(rig, pool, 1)
    rig.disks["set0/disk0"].fail_always("*", errno.EIO)
    steps(rig, pool, 9)
    rig.probe()
    jobs.resume()
    steps(rig, pool, 9)
    job = view(jobs)
    assert job["state"] == "waiting"
    assert root(rig) in job["reason"]
    assert job["bad"] < 4
    rig.disks["set0/disk0"].heal()
    rig.rounds(3)
    jobs.resume()
    steps(rig, pool, 50)
    assert (view(jobs)["state"], rig.mirrors.repairs.waiting) == ("done", 0)


def test_errors_of_many_copies_at_once_are_the_disk_s(quick_path):
    rig, pool = stor(quick_path), HeldPool()
    for content in alike(6):
        rig.put(content)
    jobs = KeptJobs().begin(rig, pool=pool, batch_directories=10)
    scrub(jobs, [root(rig)])
    while pool.held[0][1].__name__ != "go_on":  # names are known, and copies are about to be read
        steps(rig, pool, 1)
    rig.disks["set0/disk0"].fail_always("*", errno.EIO)
    steps(rig, pool, 2)
    assert (view(jobs)["state"], view(jobs)["bad"]) == ("waiting", 0)


def test_a_process_that_is_short_of_descriptors_blames_no_copy(rig):
    jobs = KeptJobs().begin(rig, pool=(pool := HeldPool()))
    scrub(jobs, [root(rig)])
    while view(jobs)["samples_done"] < 3:
        steps(rig, pool, 1)
    rig.disks["set0/disk0"].fail_always("open_to_read", errno.EMFILE)
    steps(rig, pool, 10)
    assert (view(jobs)["state"], view(jobs)["bad"]) == ("waiting", 0)
    rig.disks["set0/disk0"].heal()
    jobs.resume()
    steps(rig, pool, 50)
    assert (view(jobs)["state"], view(jobs)["samples_done"]) == ("done", 8)


def test_a_configuration_that_takes_the_disk_away_ends_its_jobs(quick_path):
    rig = stor(quick_path, (2, 2))
    fill(rig, (50,), seeds=range(8))
    pool = HeldPool()
    jobs = KeptJobs().begin(rig, pool=pool)
    scrub(jobs)
    steps(rig, pool, 6)
    mirrors = rig.mirrors
    mirrors.reconfigure(mirrors.mirrors[:1], mirrors.known_disks, 0)
    follow(jobs, 0)
    steps(rig, pool, 100)
    assert [one["state"] for one in views(jobs)] == ["done", "done", "cancelled", "cancelled"]
    assert view(jobs)["reason"] == f"no set has {root(rig, 3)} any more"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b'{"next": 3}',
        b'{"next": 1, "scrubbed": {}, "since": {}, "jobs": [{"id": 1}]}',
        b"\0" * 99,
    ],
)
def test_a_torn_file_is_named_and_made_anew(rig, data):
    kept = KeptJobs(data)
    with capturedLogs() as events:
        jobs = kept.begin(rig)
    said = [formatEvent(event) for event in events if event["log_level"] is LogLevel.error]
    assert len(said) == 1
    assert said[0].startswith(f"{JOBS_FILE} in the state directory is damaged")
    scrub(jobs, [root(rig)])
    assert kept.jobs[0]["state"] == "done"


def test_a_file_that_is_cut_anywhere_never_stops_a_start(rig):
    kept = KeptJobs()
    scrub(kept.begin(rig))
    whole = kept.data
    for length in range(0, len(whole), 7):
        KeptJobs(whole[:length]).begin(rig)


def test_what_is_kept_is_what_there_was():
    job = Job(3, "scrub", Scope(("/disk",), "ab"), 5.5, State.PAUSED, "why", "AB/1/2/3", 0.25, 7, 9)
    job.trouble("sha", "reason")
    job.rate = Rate(1e6, 5)
    again = Job.parse(json.loads(json.dumps(job.encode())))
    assert again.encode() == job.encode()
    assert again.status(0) == job.status(0)


@pytest.mark.parametrize(("root", "roots"), [("/disk", ("/disk",)), (None, ())])
def test_a_job_that_was_kept_when_each_had_one_disk_is_known(root, roots):
    value = Job(3, "scrub", Scope(roots, "ab"), 5.5).encode()
    value["scope"] = {"root": root, "prefix": "ab", "sha": None}
    assert Job.parse(value).scope == Scope(roots, "ab")


class Held(Kind):
    """Work that ends when it is told to."""

    def __init__(self, jobs, name, turn=1, *, beside_others=False):
        self.name, self._turn, self.beside_others = name, turn, beside_others
        self.runs, self.waiters = [], []
        jobs.take_up(self)

    def turn(self, job):
        return self._turn

    async def work(self, run):
        self.runs.append(run)
        waiter = Deferred()
        self.waiters.append(waiter)
        await waiter
        if run.halted:
            raise Halted

    def lasting(self, job):
        return "nothing ends it" if self.name == "lasting" else None


@pytest.fixture
def jobs(rig):
    return KeptJobs().begin(rig, pool=HeldPool())


def test_a_kind_that_comes_first_halts_the_others_at_each_of_its_disks(rig, jobs):
    late, early = Held(jobs, "late", 2), Held(jobs, "early", 0)
    both = tuple(member.root for member in rig.members[:2])
    for root in both:
        jobs.ask(late, [Scope((root,))])
    jobs.ask(early, [Scope(both)])
    assert states(jobs) == {1: "running", 2: "running", 3: "waiting"}
    assert [run.halted for run in late.runs] == [True, True]
    for waiter in late.waiters:
        waiter.callback(None)
    rig.clock.advance(0)
    assert states(jobs) == {1: "waiting", 2: "waiting", 3: "running"}
    early.waiters[0].callback(None)
    rig.clock.advance(0)
    assert states(jobs) == {1: "running", 2: "running", 3: "done"}


def test_a_kind_that_works_beside_others_waits_for_none(rig, jobs):
    alone, beside = Held(jobs, "alone"), Held(jobs, "beside", beside_others=True)
    for kind in (alone, beside, beside, alone):
        jobs.ask(kind, [Scope((root(rig),))])
    jobs.ask(beside, [Scope((root(rig),), "ab")])
    assert states(jobs) == {1: "running", 2: "running", 3: "running"}


def test_what_can_never_be_done_fails_with_its_reason(rig, jobs):
    kind = Held(jobs, "held")
    jobs.ask(kind, [Scope((root(rig),))])
    kind.waiters[0].errback(Impossible("there is no way"))
    assert (view(jobs)["state"], view(jobs)["reason"]) == ("failed", "there is no way")


def test_a_kind_may_refuse_that_its_jobs_are_cancelled(rig, jobs):
    (job,) = jobs.ask(Held(jobs, "lasting"), [Scope((root(rig),))])
    with pytest.raises(Refused, match="job 1 cannot be cancelled: nothing ends it"):
        jobs.cancel(job.id)
    assert view(jobs)["state"] == "running"


def test_jobs_of_a_kind_that_this_version_does_not_have_are_forgotten(rig, jobs):
    jobs.ask(Held(jobs, "newer"), [Scope((root(rig),))])
    again = KeptJobs(jobs.encode()).begin(rig)
    assert views(again) == []
    assert scrub(again, [root(rig)])[0].id == 2


def test_how_long_a_job_has_not_come_on_is_told_but_not_of_one_that_rests(rig):
    pool = HeldPool()
    jobs = KeptJobs().begin(rig, pool=pool)
    (job,) = scrub(jobs, [root(rig)])
    (other,) = scrub(jobs, [root(rig)], prefix="a")  # waits for its turn
    pass_seconds(rig, 500, 100)
    jobs.resume()
    assert [view(jobs, one.id)["stalled_seconds"] for one in (job, other)] == [500, 0]
    jobs.pause(job.id)
    assert view(jobs, job.id)["stalled_seconds"] == 0
    jobs.go_on(job.id)
    while view(jobs, job.id)["samples_done"] < 3:
        steps(rig, pool, 1)
    assert view(jobs, job.id)["stalled_seconds"] == 0
    jobs.set_rate(job.id, Rate(bytes_per_second=0.001))
    steps(rig, pool, 5)
    pass_seconds(rig, 5000, 50)
    assert view(jobs, job.id)["stalled_seconds"] <= 60


def test_old_jobs_are_forgotten_and_numbers_are_never_used_again(rig):
    kept = KeptJobs()
    jobs = kept.begin(rig)
    for _ in range(MOST_OVER + 20):
        scrub(jobs, sha="ab" * 32)
        rig.clock.advance(0)
    assert len(views(jobs)) <= MOST_OVER + 1
    (job,) = scrub(KeptJobs(kept.data).begin(rig), [root(rig)])
    assert job.id == MOST_OVER + 21


@pytest.mark.parametrize("share", [0.05, 0.25, 0.5, 0.75])
def test_an_eta_is_true_under_a_steady_rate(share):
    whole_seconds = 36_000.0
    speed, now = Speed(), 0.0
    while now < share * whole_seconds:
        speed.note(now, now / whole_seconds, int(now * 1e6))
        now += 2.0
    shares, read = speed.a_second(now)
    assert (1 - share) / shares == pytest.approx((1 - share) * whole_seconds, rel=0.05)
    assert read == pytest.approx(1e6, rel=0.05)


@pytest.mark.parametrize("begun", [0, 40], ids=["new", "gone on with"])
@pytest.mark.parametrize("ready_seconds", [0, 1, 30, 1000])
def test_an_eta_does_not_go_by_what_it_took_to_get_ready(rig, jobs, begun, ready_seconds):
    """It sorts what it is about, or waits for its first read, before it comes on at all."""
    kind = Held(jobs, "one")
    (job,) = jobs.ask(kind, [Scope()])
    job.share = begun / 200
    rig.clock.advance(ready_seconds)
    (run,) = kind.runs
    for n in range(begun, 200):
        rig.clock.advance(0.5)
        run.did(1, 1000)
        run.reached(str(n), (n + 1) / 200)
        left = (199 - n) / 2
        if n - begun in (10, 50, 100, 150) and left:
            assert view(jobs)["eta_seconds"] == pytest.approx(left, rel=0.1, abs=1)


def test_an_eta_follows_a_load_that_changes():
    speed, now, share = Speed(), 0.0, 0.0
    for a_second in (1e-5, 3e-6):
        for _ in range(4000):
            speed.note(now, share, 0)
            now, share = now + 2.0, share + 2 * a_second
    assert speed.a_second(now)[0] == pytest.approx(3e-6, rel=0.1)


def test_a_job_that_stands_still_has_no_eta_soon():
    speed = Speed()
    for second in range(10):
        speed.note(second, second / 100, second)
    assert speed.a_second(10_000)[0] < 1e-4


def test_the_end_of_stor_keeps_how_far_each_job_has_come(rig):
    kept, pool = KeptJobs(), HeldPool()
    jobs = kept.begin(rig, pool=pool)
    scrub(jobs, [root(rig)])
    while view(jobs)["samples_done"] < 5:
        steps(rig, pool, 1)
    assert kept.jobs[0]["samples_done"] < 5
    Deferred.fromCoroutine(jobs.stop())
    steps(rig, pool, 5)
    (job,) = kept.jobs
    assert (job["state"], job["samples_done"]) == ("running", 5)


@pytest.mark.parametrize("ending", ["stop", "follow"])
def test_jobs_that_rest_are_halted_all_at_once(quick_path, ending):
    """Each that is woken ends before the next one is."""
    rig = stor(quick_path, (2, 2))
    fill(rig, (50,), seeds=range(20))
    jobs = KeptJobs().begin(rig)
    scrub(jobs, rate=Rate(bytes_per_second=0.001))
    assert set(states(jobs).values()) == {"running"}
    if ending == "stop":
        Deferred.fromCoroutine(jobs.stop())
        assert set(states(jobs).values()) == {"waiting"}
    else:
        rig.mirrors.reconfigure((), rig.mirrors.known_disks, 0)
        follow(jobs, 0)
        rig.clock.advance(0)
        assert set(states(jobs).values()) == {"cancelled"}

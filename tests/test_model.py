"""A Stor whose disks fail by chance, beside a model of what it has acknowledged."""

import json
import os
import shutil
import sys
from collections import Counter
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from stor.disk.disk import SMALL_BYTES
from tests.conformance import descriptors, sample
from tests.support.chance import Chance, Unreliable
from tests.support.http import no_bug_logged, upload_head
from tests.support.rig import FaultyRig, digest_of

CONTENTS = {f"{size} B, {n}": sample(size, n) for size in (1, 5000) for n in range(4)}
CONTENTS |= {"empty": b"", "300 KB": sample(300_000), "1.2 MB": sample(1_200_000)}
DIGESTS = {name: digest_of(content) for name, content in CONTENTS.items()}
PATHS = {name: digest.disk_path for name, digest in DIGESTS.items()}
LABELS = ("set0/disk0", "set0/disk1", "set1/disk0", "set1/disk1")

NAMES = st.sampled_from(sorted(CONTENTS))


DAMAGES = {
    "flipped": lambda content: bytes([content[0] ^ 1]) + content[1:] if content else b"x",
    "shorter": lambda content: content[:-1] or b"yy",
    "longer": lambda content: content + b"z",
}


class Model(RuleBasedStateMachine):
    """`path` and `figures` are set by the test; every run has a directory of its own."""

    path = figures = None
    numbers = count()

    def __init__(self):
        super().__init__()
        self._cleanup = ExitStack()
        self._cleanup.enter_context(no_bug_logged())
        self._descriptors = descriptors()
        self.root = self.path / str(next(self.numbers))
        self.rig = None
        self.acknowledged = set()
        self.away = set()
        #: What is under each name on each disk: its signature, and whether it is the sample.
        self.seen = {}
        #: The copies that the test has damaged, and those it has harmed in this step.
        self.damaged, self.harmed = set(), set()
        self.hits_before = 0

    @initialize(
        seed=st.integers(0, 2**32), modern=st.booleans(), names=st.lists(NAMES, unique=True)
    )
    def begin(self, seed, modern, names):
        self.chance = Chance(seed)
        self.kind = partial(Unreliable, self.chance, modern)
        self.start()
        for name in names:
            self.post(name, "POST")

    @rule()
    def restart(self):
        self.start()

    def start(self):
        # What is at a root is told by its marker, which an error must not make look like none.
        self.chance.on = False
        self.rig = FaultyRig(self.root, kind=self.kind)
        self.chance.on = True
        self.rig.begin()

    @rule(seconds=st.sampled_from([1, 60, 1000]))
    def probe(self, seconds):
        self.rig.clock.advance(seconds)
        self.rig.rounds(1)

    @rule(name=NAMES, method=st.sampled_from(["POST", "PUT"]))
    def post(self, name, method):
        known = self.known_sets(name)
        whole = self.all_online()
        response, hits = self.observed(lambda: self.rig.put(CONTENTS[name], DIGESTS[name], method))
        if response.status not in (200, 201):
            assert response.status in (503, 507)
            assert hits or not whole
            return
        self.acknowledged.add(name)
        labels = self.labels_of(json.loads(response.body))
        assert len({label[:4] for label in labels}) == 1
        states = [self.look(label, name) for label in labels]
        if response.status == 201:
            assert states == [True] * len(labels)
            assert len(labels) == 2 or labels[0][:4] in known
        else:  # a large copy counts when it has the right size
            large = len(CONTENTS[name]) > SMALL_BYTES
            assert all(state or (large and state is False) for state in states)

    @rule(name=NAMES, other=NAMES)
    def post_wrong_body(self, name, other):
        if name == other:
            return
        known, whole = self.known_sets(name), self.all_online()
        response, hits = self.observed(lambda: self.rig.put(CONTENTS[other], DIGESTS[name]))
        assert response.status in (412, 503, 507) or (response.status == 200 and known)
        assert response.status in (200, 412) or hits or not whole

    @rule(name=NAMES, part=st.floats(0, 0.99))
    def post_cut_off(self, name, part):
        content = CONTENTS[name]
        connection = self.rig.connect()
        length = ("Content-Length", str(len(content) + 1))
        connection.send(upload_head(DIGESTS[name], length) + content[: int(part * len(content))])
        connection.close()
        assert all(response.status != 201 for response in connection.responses())

    @rule(name=NAMES)
    def get(self, name):
        content = CONTENTS[name]
        self.fetch(name, [], lambda answer: answer.status == 200 and answer.body == content)

    @rule(name=NAMES, begin=st.floats(0, 0.99), length=st.integers(1, 600_000))
    def get_part(self, name, begin, length):
        content = CONTENTS[name]
        first = int(begin * len(content))
        part = content[first : first + length]
        self.fetch(
            name,
            [("Range", f"bytes={first}-{first + length - 1}")],
            lambda answer: (
                (answer.status, answer.body) == (206, part)
                if content
                else (answer.status, answer.body) in ((200, b""), (416, answer.body))
            ),
        )

    @rule(name=NAMES)
    def head(self, name):
        content, sure, bad = CONTENTS[name], self.sure(name), self.bad_in_use(name)
        response, hits = self.observed(lambda: self.rig.get(str(DIGESTS[name]), method="HEAD"))
        right = (response.status, response.headers["content-length"]) == (200, str(len(content)))
        # A size is believed before anything is read.
        denied = response.status == 404 and self.lied()
        assert right or bad or hits or not sure or denied
        assert response.status in (200, 404, 500, 503)

    @precondition(lambda self: self.copies())
    @rule(data=st.data(), damage=st.sampled_from(sorted(DAMAGES)))
    def damage(self, data, damage):
        label, name = data.draw(st.sampled_from(self.copies()))
        Path(self.place(label, name)).write_bytes(DAMAGES[damage](CONTENTS[name]))
        self.damaged.add((label, name))
        self.harmed.add((label, name))

    @precondition(lambda self: self.copies())
    @rule(data=st.data())
    def remove(self, data):
        label, name = data.draw(st.sampled_from(self.copies()))
        os.unlink(self.place(label, name))
        self.harmed.add((label, name))

    @rule(label=st.sampled_from(LABELS))
    def take_away(self, label):
        if {away[:4] for away in self.away} - {label[:4]} or label in self.away:
            return  # one set at a time, the other takes uploads
        (self.root / label).rename(self.root / f"{label}.away")
        self.away.add(label)

    @precondition(lambda self: self.away)
    @rule(data=st.data())
    def bring_back(self, data):
        self.come_back(data.draw(st.sampled_from(sorted(self.away))))

    @invariant()
    def nothing_is_lost_or_wrong(self):
        if self.rig is None:
            return
        hits, self.hits_before = self.chance.hits[self.hits_before :], len(self.chance.hits)
        for label in LABELS:
            for name in CONTENTS:
                before = self.seen.get((label, name), (None, None))[1]
                now = self.look(label, name)
                if now is False:
                    assert (label, name) in self.damaged, f"{label} has wrong bytes for {name}"
                else:
                    self.damaged.discard((label, name))
                if before and now is None and (label, name) not in self.harmed:
                    assert self.kept_aside(label, name), f"{label} has lost {name}"
        self.harmed.clear()
        for member in self.rig.members:
            staged = list(Path(member.root).glob(".stor/tmp/*"))
            assert not staged or member.disk.unswept, f"left: {staged} after {hits}"
        for mirror in self.rig.mirrors.mirrors:
            assert mirror.reserved.total() == (0, 0)
        assert self.rig.uploads.buffered_bytes == 0
        assert self.rig.mirrors.turns.idle
        self.figures["steps of the model"] += 1

    def teardown(self):
        try:
            if sys.exc_info()[0] is None and self.rig is not None:
                self.assert_all_whole()
            self._cleanup.close()
        finally:
            shutil.rmtree(self.root, ignore_errors=True)

    def assert_all_whole(self):
        """Nothing fails any more: what has a good copy gets one on every disk of a set."""
        self.chance.on = False
        for label in sorted(self.away):
            self.come_back(label)
        self.start()
        self.chance.on = False
        savable = {name for name in self.acknowledged if self.good(name)}
        for _ in range(100):
            if not self.halves():
                break
            self.rig.rounds(1)
            for name in savable:
                self.rig.get(str(DIGESTS[name]))
        assert not self.halves()
        for name in savable:
            # Of a large one whose bad copy is found out only now, the first answer is cut.
            bodies = (self.rig.get(str(DIGESTS[name])).body for _ in range(2))
            assert any(body == CONTENTS[name] for body in bodies)
        self.rig.rounds(1)
        assert self.rig.staged() == []
        roots, paths = self.rig.roots, set(PATHS.values())
        assert {str(p.relative_to(r)) for r in roots for p in r.glob("??/??/??/*")} <= paths
        assert descriptors() == self._descriptors
        self.figures["samples of the model that were whole in the end"] += len(savable)

    def fetch(self, name, headers, right):
        """A sample that has a good copy is sent, and is right, unless a disk fails just now.

        When a bad copy of a large one is found out while it is sent, the answer is cut; one of the
        next is whole. So it is with a sample that a disk has denied.
        """
        large = len(CONTENTS[name]) > SMALL_BYTES
        for _ in range(3):
            sure, bad, gone = self.sure(name), self.bad_in_use(name), self.gone(name)
            response, hits = self.observed(lambda: self.rig.get(str(DIGESTS[name]), headers))
            if right(response):
                return
            assert response.status in (200, 206, 404, 500, 503)
            if response.complete and response.status in (200, 206):
                # A part of a large sample is only as good as the one copy that can be read.
                assert response.status == 206
                assert large
                assert bad
                assert hits or not sure
            if response.status == 404 and self.good(name):
                assert gone or any(fault == "ENOENT" for *_, fault in hits)
            if hits or not sure:
                return
            if response.status == 404 and self.lied():
                self.rig.clock.advance(2)  # that "no" was checked, or the next one is
                continue
            assert large, f"{response.status} for {name}"
            assert bad, f"{response.status} for {name}"
            self.chance.on = False
            self.rig.rounds(2)
            self.chance.on = True
        raise AssertionError(f"{name} is not sent although it has a good copy")

    def observed(self, request):
        """The response, and the calls that failed meanwhile."""
        before = len(self.chance.hits)
        response = request()
        return response, self.chance.hits[before:]

    def place(self, label, name):
        root = f"{label}.away" if label in self.away else label
        return f"{self.root}/{root}/{PATHS[name]}"

    def look(self, label, name):
        """Whether a disk has the sample: `None` when it has nothing under its name."""
        path = self.place(label, name)
        try:
            status = os.stat(path)
        except FileNotFoundError:
            self.seen[label, name] = (None, None)
            return None
        signature = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if self.seen.get((label, name), (None, None))[0] != signature:
            self.seen[label, name] = (signature, Path(path).read_bytes() == CONTENTS[name])
        return self.seen[label, name][1]

    def kept_aside(self, label, name):
        """Whether the disk has the sample in quarantine, as one that could not be read."""
        digits = DIGESTS[name].raw.hex().upper()
        paths = self.root.glob(f"{label}*/.stor/quarantine/{digits}.dat.????????")
        return any(path.read_bytes() == CONTENTS[name] for path in paths)

    def copies(self):
        """The disks and names of all copies."""
        return [key for key, (_, right) in sorted(self.seen.items()) if right is not None]

    def good(self, name):
        """The disks with a good copy, wherever they are now."""
        return [label for label in LABELS if self.look(label, name)]

    def member(self, label):
        return self.rig.members[LABELS.index(label)]

    def in_use(self, label, name):
        """Whether a disk is asked for its copy of a sample."""
        member = self.member(label)
        asked = member.health.readable and DIGESTS[name] not in member.corrupt
        return asked and label not in self.away

    def sure(self, name):
        """Whether a disk that is asked has a good copy."""
        return any(self.in_use(label, name) for label in self.good(name))

    def bad_in_use(self, name):
        """Whether a disk that is asked has a bad copy."""
        return any(self.look(label, name) is False and self.in_use(label, name) for label in LABELS)

    def gone(self, name):
        """Whether a disk without a copy answers for each set that has a good one."""
        sets = {label[:4] for label in self.good(name)}
        silent = {
            label[:4]
            for label in LABELS
            if self.look(label, name) is None
            and label not in self.away
            and self.member(label).trusted
        }
        return sets <= silent

    def lied(self):
        """Whether a disk has denied what it holds.

        When the other copy was removed by hand, the index forgets the sample until its "no" is
        checked.
        """
        return any(fault == "ENOENT" for *_, fault in self.chance.hits)

    def known_sets(self, name):
        """The sets that have anything under a name."""
        return {label[:4] for label in LABELS if self.look(label, name) is not None}

    def halves(self):
        """The samples that have a good copy, and no set of disks that is whole."""
        found = {name: self.good(name) for name in self.acknowledged}
        return {
            name: good
            for name, good in found.items()
            if good and max(Counter(label[:4] for label in good).values()) < 2
        }

    def all_online(self):
        return all(member.writable for member in self.rig.members) and not self.away

    def labels_of(self, paths):
        """The disks that paths are on."""
        return ["/".join(path.removeprefix(f"{self.root}/").split("/")[:2]) for path in paths]

    def come_back(self, label):
        """Mount a disk again; below its mount point nothing was written meanwhile."""
        root = self.root / label
        if root.exists():
            root.rmdir()
        (self.root / f"{label}.away").rename(root)
        self.away.discard(label)


def test_nothing_acknowledged_is_ever_lost(quick_path, figures, soak):
    steps, runs = (100, 1500) if soak else (50, 60)
    before = figures["steps of the model"]
    run_state_machine_as_test(
        type("Model", (Model,), {"path": quick_path, "figures": figures}),
        settings=settings(
            derandomize=True,
            deadline=None,
            database=None,
            max_examples=runs,
            stateful_step_count=steps,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],  # to make a failure smaller takes minutes
            report_multiple_bugs=False,
        ),
    )
    assert figures["steps of the model"] - before >= (100_000 if soak else 1000)

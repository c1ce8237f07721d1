"""What a process that only reads knows of all disks, whatever becomes of the one that writes."""

import random
import shutil
from contextlib import contextmanager

import pytest

from stor.disk.syscalls import Syscalls
from stor.index.index import Index, Shared, shared_memory, table_path
from stor.mirror.names import Names
from tests.support.host import Host
from tests.support.rig import close_indexes, digest_of

KEPT = [b"sample %d" % number for number in range(20)]
ABSENT = digest_of(b"stored by nobody")


@pytest.fixture
def host(quick_path):
    return Host(quick_path)


@pytest.fixture
def shared():
    close_indexes()
    made = Shared.create()
    yield made
    close_indexes()
    made.close()


@contextmanager
def reading(shared, number=0):
    """A process that only reads, and what it has told the one that writes."""
    told = []
    names = Names(Index(shared, shared.keys, number), lambda *lacking: told.append(lacking))
    yield names, told
    names.stop()


def learnt(rig):
    for _ in range(3):
        rig.clock.pump([0] * 50)
        rig.rounds(1)
    return rig


def answers(names, rig, contents):
    names.follow(rig.mirrors.mirrors)
    return {names.held(digest_of(content)) for content in contents}


def test_a_reader_knows_a_sample_from_before_its_201_and_denies_what_nobody_has(host, shared):
    rig = learnt(host.start(shared=shared))
    with reading(shared) as (names, told):
        names.follow(rig.mirrors.mirrors)
        for content in KEPT:
            assert names.held(digest_of(content)) is False
            assert rig.put(content).status == 201
            assert names.held(digest_of(content)) is True
            assert names.find(digest_of(content)) == rig.mirrors.names.find(digest_of(content))
        assert not told


def test_a_reader_denies_nothing_of_a_set_whose_disks_it_has_not_heard_of(host, shared):
    learnt(host.start(shared=shared))
    other = Host(host.path / "other").start()
    for member in other.members:
        member.health.probe_failed("not heard of")
    with reading(shared) as (names, _):
        assert answers(names, other, [b"anything"]) == {None}


def test_what_is_known_outlives_the_writer_and_what_is_not_there_waits_for_the_next_one(
    host, shared
):
    rig = learnt(host.start(shared=shared))
    for content in KEPT:
        rig.put(content)
    with reading(shared) as (names, _):
        assert answers(names, rig, KEPT) == {True}
        close_indexes()  # the writer has ended, as with kill -9: nothing is noted
        again = host.start(shared=shared, recent_limit=5)
        assert answers(names, again, KEPT) == {True}
        learnt(again)
        assert answers(names, again, KEPT) == {True}
        assert names.held(ABSENT) is False


def test_what_came_to_the_disks_between_two_writers_is_not_denied(host, shared):
    rig = learnt(host.start(shared=shared))
    by_hand = b"copied while no writer was there"
    with reading(shared) as (names, _):
        assert answers(names, rig, [by_hand]) == {False}
        close_indexes()
        for label in ("set0/disk0", "set0/disk1"):
            path = host.path / label / digest_of(by_hand).disk_path
            path.parent.mkdir(parents=True)
            path.write_bytes(by_hand)
            shutil.rmtree(host.path / label / ".stor/index")
        again = host.start(shared=shared)
        assert answers(names, again, [by_hand]) != {False}
        learnt(again)
        assert answers(names, again, [by_hand]) == {True}


def test_of_a_set_that_a_new_writer_has_not_heard_nothing_is_denied(host, shared):
    rig = learnt(host.start(shared=shared))
    with reading(shared) as (names, _):
        assert answers(names, rig, [b"anything"]) == {False}
        close_indexes()
        for label in ("set0/disk0", "set0/disk1"):
            (host.path / label).rename(host.path / label.replace("/", "-"))
        learnt(host.start(shared=shared))
        assert answers(names, rig, [b"anything"]) == {None}


def test_a_reader_tells_the_writer_of_what_is_not_where_the_index_has_it(host, shared):
    rig = learnt(host.start(shared=shared))
    rig.put(KEPT[0])
    for path in rig.copies(KEPT[0]):
        path.unlink()
    digest = digest_of(KEPT[0])
    with reading(shared) as (names, told):
        names.follow(rig.mirrors.mirrors)
        (holder,) = names.find(digest).holders
        names.lost(digest, holder, names.next_number)
        assert told == [(digest, holder)]
        rig.mirrors.repairs.report(*told[0])
        assert names.held(digest) is False


@pytest.fixture
def kept(quick_path):
    """A state directory: each call is another process of the host, with memory of its own."""
    directory, made = quick_path / "state", []

    def begin(rig_of, **options):
        close_indexes()
        made.append(shared_memory(str(directory), Syscalls()))
        path = table_path(str(directory))
        return rig_of(shared=made[-1], table_path=path, keep_seconds=0, **options)

    yield begin
    close_indexes()
    for shared in made:
        shared.close()


def test_a_start_knows_from_the_kept_table_what_was_stored_before_and_from_journals_the_rest(
    host, kept
):
    rig = learnt(kept(host.start, recent_limit=5))
    for content in KEPT[:-3]:
        rig.put(content)
        rig.rounds(1)
    assert rig.mirrors.names.table_bytes
    in_table = sum(map(rig.mirrors.names.samples, rig.mirrors.mirrors)) - rig.mirrors.names.recent
    for content in KEPT[-3:]:
        rig.put(content)
    again = learnt(kept(host.start))
    names = again.mirrors.names
    assert names.recent == len(KEPT) - in_table < len(KEPT)
    assert answers(names, again, KEPT) == {True}
    assert names.held(ABSENT) is False


@pytest.mark.parametrize("damage", ["gone", "cut", "flipped", "another host's", "directory"])
def test_without_a_table_that_can_be_used_all_is_learnt_from_the_disks(host, kept, damage):
    rig = learnt(kept(host.start, recent_limit=5))
    for content in KEPT:
        rig.put(content)
        rig.rounds(1)
    path = host.path / "state/index-table"
    content = path.read_bytes()
    path.unlink()
    if damage == "directory":
        path.mkdir()
    elif damage == "another host's":
        (host.path / "state/index-key").unlink()
        path.write_bytes(content)
    elif damage != "gone":
        path.write_bytes(content[:-1] if damage == "cut" else content[:-1] + b"?")
    again = learnt(kept(host.start))
    assert answers(again.mirrors.names, again, KEPT) == {True}
    assert again.mirrors.names.held(ABSENT) is False


@pytest.mark.parametrize("seed", range(6))
def test_whatever_table_is_loaded_nothing_that_is_stored_is_denied(host, kept, seed):
    """One of any age, beside disks that have lost their index, or were used by another host."""
    chance, stored, tables = random.Random(seed), [], []
    path = host.path / "state/index-table"
    limits = {"recent_limit": 4}
    rig = learnt(kept(host.start, **limits))
    for step in range(40):
        doing = chance.choice(["put"] * 5 + ["round", "round", "start", "start", "lost", "abroad"])
        if doing == "put":
            content = b"%d of %d" % (step, seed)
            assert rig.put(content).status == 201
            stored.append(content)
        elif doing == "round":
            learnt(rig)
        else:
            if path.exists():
                tables.append(path.read_bytes())
            if tables and chance.random() < 0.7:
                path.write_bytes(chance.choice(tables))
            if doing == "lost":
                label = chance.choice(["set0/disk0", "set0/disk1", "set1/disk0", "set1/disk1"])
                shutil.rmtree(host.path / label / ".stor/index", ignore_errors=True)
            elif doing == "abroad":
                close_indexes()
                other = host.start()
                content = b"%d of %d, elsewhere" % (step, seed)
                assert other.put(content).status == 201
                stored.append(content)
            rig = kept(host.start, **limits)
        assert False not in answers(rig.mirrors.names, rig, stored)
    learnt(rig)
    assert answers(rig.mirrors.names, rig, stored) == {True}
    assert tables


@pytest.mark.parametrize("seed", range(6))
def test_no_reader_ever_denies_what_is_stored(host, shared, seed):
    """Writers come and go, tables are made, readers end and begin, disks go away and return."""
    chance = random.Random(seed)
    options = {"shared": shared, "recent_limit": 8}
    rig = learnt(host.start(**options))
    stored, away, readers, begun = [], None, {}, 0

    def begin(number):
        readers[number] = reading(shared, number)
        return readers[number].__enter__()

    open_readers = {number: begin(number) for number in range(2)}
    for step in range(60):
        doing = chance.choice(["put", "put", "put", "round", "writer", "reader", "away", "back"])
        if doing == "put":
            content = b"%d of %d" % (step, seed)
            if rig.put(content).status == 201:
                stored.append(content)
        elif doing == "round":
            rig.clock.pump([0] * 20)
            rig.rounds(1)
        elif doing == "writer":
            close_indexes()
            rig = host.start(**options)
            begun += 1
        elif doing == "reader":
            number = chance.randrange(2)
            readers[number].__exit__(None, None, None)
            shared.leave(number)
            open_readers[number] = begin(number)
        elif doing == "away" and away is None:
            away = chance.choice(["set0/disk0", "set0/disk1", "set1/disk0", "set1/disk1"])
            (host.path / away).rename(host.path / "away")
            rig.rounds(1)
        elif doing == "back" and away is not None:
            (host.path / "away").rename(host.path / away)
            away = None
            rig.rounds(1)
        for names, _ in open_readers.values():
            assert names.broken is None
            assert False not in answers(names, rig, stored)
    assert begun
    for reader in readers.values():
        reader.__exit__(None, None, None)

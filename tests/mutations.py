"""Proof that the tests guard what Stor promises: each promise is broken, and a test turns red.

`python -m tests.mutations` takes the guards out of a copy of the source, one at a time; with
arguments only those whose names have one of them as a part.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import attrs

REPOSITORY = Path(__file__).parent.parent

#: So long a few tests take at most; what takes longer hangs.
RUN_SECONDS = 120

_COPIED = ("stor", "tests", "twisted", "pyproject.toml")
_PASSED, _FAILED = 0, 1  # pytest's exit codes; all others mean that the tests did not run


@attrs.frozen
class Mutation:
    """One guard taken out: `old` stands in `file` exactly once; one of `tests` notices `new`."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def apply(self, source: str) -> str:
        """`source` without the guard. Raises `ValueError` unless it is there exactly once."""
        found = source.count(self.old)
        if found != 1:
            raise ValueError(
                f"{self.name}: {self.old!r} stands {found} times in {self.file}; "
                "tests/mutations.py is to be brought up to date"
            )
        return source.replace(self.old, self.new)


_EXACT = "tests/test_exact_names.py"
_STATE = "tests/test_state.py::test_a_file_is_durable_before_it_has_its_name"
_KNOWN = "tests/test_known_disks.py"
_SCRUB = "tests/test_scrub.py"
_REBUILD = "tests/test_rebuild.py"
_COMPLETE = "tests/test_completeness.py"
_LACKING = f"{_COMPLETE}::test_a_disk_that_lacks_samples_makes_none_404"
_AGAINST = f"{_COMPLETE}::TestWhatSpeaksAgainstANo"
_INTERRUPTED = f"{_COMPLETE}::test_a_disk_that_takes_nothing_for_a_moment_is_not_complete"
_TOLD = (
    "tests/test_partial_uploads.py"
    "::test_what_is_told_outlives_a_loss_of_power_and_so_does_the_sample"
)
_DURABLE = "tests/test_commit_order.py::test_a_sample_is_durable_on_every_disk_when_it_is_answered"
_UPKEEP = "tests/test_durable_upkeep.py"
_GROUPS = "tests/test_group_commit.py"
_NAMES = "tests/test_names.py"
_SHARED = "tests/test_shared_names.py"
_LOST_FILE = "tests/test_lost_index.py"
_LOST = f"{_LOST_FILE}::test_no_sample_is_404_that_the_other_disk_has"
_NOTED = f"{_NAMES}::test_what_is_known_is_noted_durably_and_in_order"
_MOUNT = "tests/test_disk.py::test_a_disk_on_the_wrong_file_system_is_neither_read_nor_written"
_LOOKED = (
    "tests/test_known_disks.py"
    "::test_a_disk_that_is_unmounted_under_a_look_does_not_say_that_nothing_is_there"
)
_CHOOSER = "tests/test_placement.py::test_what_is_full_or_away_is_not_drawn_from_that_moment_on"
_HANGING = (
    "tests/test_hung_disk.py"
    "::test_new_samples_go_elsewhere_once_a_disk_has_not_said_whether_it_has_them"
)
_BACK = "tests/test_placement.py::test_what_is_back_is_drawn_from_that_moment_on"
_SEGMENT = "tests/test_journal.py::test_a_segment_has_its_name_once_its_header_is_durable"
_BASE = "tests/test_base.py::test_a_file_has_its_name_once_it_is_durable"
_TABLE = "tests/test_table.py::test_a_table_is_kept_once_it_is_durable"
_LOST_COPY = (
    "tests/test_store_conformance.py"
    "::test_a_copy_that_is_lost_is_put_back_before_the_sample_counts_as_stored"
)

SYNCS = (
    Mutation(
        "sync before a client is told how far an upload is",
        "stor/disk/partial.py",
        "            disk.files.sync(fd)\n            disk.files.set_attribute(",
        "            disk.files.set_attribute(",
        (_TOLD,),
    ),
    Mutation(
        "sync of the note of how far an upload is",
        "stor/disk/partial.py",
        "            disk.files.sync(fd)\n        finally:",
        "            pass\n        finally:",
        (_TOLD,),
    ),
    Mutation(
        "sync of the name of an upload that a client asks about",
        "stor/disk/partial.py",
        "        disk.sync_directory(PARTIAL_DIRECTORY, root_fd)\n\n\n",
        "\n\n",
        (_TOLD,),
    ),
    Mutation(
        "sync of the name of an upload",
        "stor/disk/partial.py",
        "            self.disk.sync_directory(PARTIAL_DIRECTORY, root_fd)\n",
        "            pass\n",
        (_TOLD,),
    ),
    Mutation(
        "sync of what an upload has brought",
        "stor/mirror/partial.py",
        "        await self._everywhere(lambda slot: slot.run(slot.copy.sync))\n"
        "        await self._everywhere(lambda slot: slot.run(_copy_of(slot).note, progress))\n",
        "        await self._everywhere(lambda slot: slot.run(_copy_of(slot).note, progress))\n",
        (_TOLD,),
    ),
    Mutation(
        "sync of what is noted of an upload before it is told",
        "stor/mirror/partial.py",
        "        if durably:\n",
        "        if False:\n",
        (_TOLD,),
    ),
    Mutation(
        "sync of a batch's bodies and records before they have names",
        "stor/jobs/refill.py",
        "                await target.work(self._pool(target.root), sync)\n",
        "                pass\n",
        (f"{_REBUILD}::test_a_copy_is_durable_when_it_is_told_of",),
    ),
    Mutation(
        "sync of a batch that shares one",
        "stor/disk/staged_batch.py",
        "        self._disk.files.sync_all(self._root)\n",
        "",
        (f"{_REBUILD}::test_a_copy_is_durable_when_it_is_told_of",),
    ),
    Mutation(
        "flush of a disk's own cache after a batch",
        "stor/disk/staged_batch.py",
        "        self._disk.files.sync(self._root)\n",
        "",
        (f"{_REBUILD}::test_a_batch_costs_four_syncs_however_many_samples_it_has",),
    ),
    Mutation(
        "sync of each body of a batch that shares none",
        "stor/disk/staged_batch.py",
        "                    copy.sync()\n",
        "                    pass\n",
        (f"{_REBUILD}::test_a_copy_is_durable_when_it_is_told_of",),
    ),
    Mutation(
        "sync of the records of a batch that shares none",
        "stor/disk/staged_batch.py",
        "                    journal.sync(self._root)\n",
        "                    pass\n",
        (f"{_REBUILD}::test_a_copy_is_durable_when_it_is_told_of",),
    ),
    Mutation(
        "sync of the names of a batch that shares none",
        "stor/disk/staged_batch.py",
        "                copy.sync_directories(digest, self._root)\n",
        "                pass\n",
        (f"{_REBUILD}::test_a_copy_is_durable_when_it_is_told_of",),
    ),
    Mutation(
        "sync of a large copy that is streamed",
        "stor/disk/staged_batch.py",
        "            self._large.sync()\n",
        "",
        (
            f"{_REBUILD}"
            "::test_a_large_sample_is_streamed_and_never_leaves_more_than_a_batch_unsynced",
        ),
    ),
    Mutation(
        "sync of a file that takes the place of another",
        "stor/disk/disk.py",
        "        yield fd\n        files.sync(fd)\n",
        "        yield fd\n",
        (_STATE, _UPKEEP),
    ),
    Mutation(
        "sync of the name of a file of the state directory",
        "stor/state.py",
        "            files.sync(directory_fd)\n",
        "            pass\n",
        (_STATE,),
    ),
    Mutation(
        "fsync(2) itself",
        "stor/disk/syscalls.py",
        "os.fsync(fd)",
        "pass",
        (_UPKEEP,),
    ),
    Mutation(
        "sync of a new copy",
        "stor/disk/staged.py",
        "self.disk.files.sync(self._fd)",
        "pass",
        (_DURABLE,),
    ),
    Mutation(
        "sync of a journal for one upload",
        "stor/disk/staged.py",
        "            try:\n                journal.sync(root_fd)\n            except OSError:\n",
        "            try:\n                pass\n            except OSError:\n",
        (_DURABLE,),
    ),
    Mutation(
        "sync of the record that a sample leaves",
        "stor/disk/leaving.py",
        "                self.names.journal.sync(root_fd)\n",
        "                pass\n",
        ("tests/test_moves.py::test_records_are_durable_before_names_come_and_before_they_go",),
    ),
    Mutation(
        "sync of what a walk has found",
        "stor/disk/names.py",
        "                self.journal.sync(root_fd)\n",
        "                pass\n",
        (_NOTED,),
    ),
    Mutation(
        "sync of what is noted of a journal",
        "stor/disk/names.py",
        "            files.sync(fd)\n",
        "            pass\n",
        (_NOTED,),
    ),
    Mutation(
        "sync of the name of what is noted of a journal",
        "stor/disk/names.py",
        "        self._disk.sync_directory(INDEX_DIRECTORY, root_fd)\n",
        "",
        (_NOTED,),
    ),
    Mutation(
        "sync of the end of what was known of a disk",
        "stor/disk/names.py",
        "                disk.sync_directory(INDEX_DIRECTORY, root_fd)\n",
        "                pass\n",
        (_NOTED,),
    ),
    Mutation(
        "sync of a copy that is relied on",
        "stor/disk/staged.py",
        "            files.sync(fd)\n",
        "            pass\n",
        ("tests/test_concurrent_uploads.py::test_a_name_that_is_relied_on_is_synced_by_each",),
    ),
    Mutation(
        "sync of the directory with the name",
        "stor/disk/staged.py",
        "if child is None or child in missing:",
        "if child is not None and child in missing:",
        (_DURABLE,),
    ),
    Mutation(
        "sync of new parent directories",
        "stor/disk/staged.py",
        "if child is None or child in missing:",
        "if child is None:",
        (_DURABLE,),
    ),
    Mutation(
        "sync of directories before the answer",
        "stor/mirror/write.py",
        "                partial(copy.sync_directories, digest),\n",
        "                lambda: None,\n",
        (_DURABLE,),
    ),
    Mutation(
        "sync at the end of a body",
        "stor/mirror/write.py",
        "            self._record(root_fd)\n            self._sync(root_fd)\n",
        "            self._record(root_fd)\n",
        (_DURABLE,),
    ),
    Mutation(
        "sync at the end of a body that comes in one piece",
        "stor/mirror/write.py",
        "def _sync(self, root_fd: int) -> None:\n        self.copy.sync()\n",
        "def _sync(self, root_fd: int) -> None:\n        pass\n",
        (_DURABLE,),
    ),
    Mutation(
        "sync of an upload that is alone",
        "stor/mirror/group_commit.py",
        "            self.sync(root_fd)\n",
        "",
        (_DURABLE,),
    ),
    Mutation(
        "sync of each upload where none is shared",
        "stor/mirror/group_commit.py",
        "    task.step.sync(root_fd)\n",
        "",
        (f"{_GROUPS}::test_nothing_is_shared_while_others_have_much_to_write",),
    ),
    Mutation(
        "sync for a group of uploads",
        "stor/mirror/group_commit.py",
        "                    self._disk.files.sync_all(roots[0])\n",
        "",
        (f"{_GROUPS}::test_uploads_that_share_a_sync_are_durable_when_they_are_answered",),
    ),
    Mutation(
        "flush of a disk's own cache after a shared sync",
        "stor/mirror/group_commit.py",
        "                    self._disk.files.sync(roots[0])\n",
        "",
        (f"{_GROUPS}::test_the_disks_own_cache_is_flushed_after_a_shared_sync",),
    ),
    Mutation(
        "file systems that are known to sync all",
        "stor/mirror/group_commit.py",
        "known = self._disk.files.type_of(root_fd) in KNOWN_TYPES",
        "known = True",
        (f"{_GROUPS}::test_nothing_is_shared_on_a_file_system_that_is_not_known",),
    ),
    Mutation(
        "syncfs(2) itself",
        "stor/disk/syscalls.py",
        "if _LIBC.syncfs(fd):",
        "if False:",
        (f"{_GROUPS}::test_a_sync_of_everything_says_what_the_kernel_says",),
    ),
    Mutation(
        "files are opened after a group's sync begins to watch",
        "stor/mirror/group_commit.py",
        "        roots = [self._disk.enter()]\n"
        "        outcomes = [_outcome(task.step.do, roots[0]) for task in waiting]\n",
        "        outcomes = [_outcome(task.step.do, None) for task in waiting]\n"
        "        roots = [self._disk.enter()]\n",
        (f"{_GROUPS}::test_a_sync_watches_for_errors_before_anything_is_done",),
    ),
    Mutation(
        "sync after a name is taken back",
        "stor/disk/staged.py",
        "        self.disk.sync_directory(digest.directories[-1], root_fd)\n",
        "",
        (_UPKEEP,),
    ),
    Mutation(
        "sync of any directory",
        "stor/disk/disk.py",
        "            self.files.sync(fd)\n        finally:\n            self.files.close(fd)\n\n",
        "            pass\n        finally:\n            self.files.close(fd)\n\n",
        (_DURABLE,),
    ),
    Mutation(
        "sync of the reason in quarantine",
        "stor/disk/disk.py",
        '                write_all(self.files, fd, f"{reason}\\n".encode())\n'
        "                self.files.sync(fd)\n",
        '                write_all(self.files, fd, f"{reason}\\n".encode())\n',
        (_UPKEEP,),
    ),
    Mutation(
        "sync of the quarantine",
        "stor/disk/disk.py",
        "for directory in (QUARANTINE_DIRECTORY, digest.directories[-1]):",
        "for directory in (digest.directories[-1],):",
        (_UPKEEP,),
    ),
    Mutation(
        "sync of where a bad copy was",
        "stor/disk/disk.py",
        "for directory in (QUARANTINE_DIRECTORY, digest.directories[-1]):",
        "for directory in (QUARANTINE_DIRECTORY,):",
        (_UPKEEP,),
    ),
    Mutation(
        "sync of Stor's own directories",
        "stor/disk/disk.py",
        'for path in (OWN_DIRECTORY, "."):',
        "for path in ():",
        (_UPKEEP,),
    ),
    Mutation(
        "sync of a marker's name",
        "stor/disk/identity.py",
        'for directory in (OWN_DIRECTORY, "."):',
        "for directory in ():",
        (_UPKEEP,),
    ),
    Mutation(
        "sync of a probe's byte",
        "stor/disk/probe.py",
        "            files.sync(fd)\n",
        "",
        (
            "tests/test_health.py::test_a_disk_that_a_probe_cannot_read_is_offline_and_one_it_cannot"
            "_write_suspect",
        ),
    ),
    Mutation(
        "sync of what is to be repaired",
        "stor/disk/notes.py",
        "        disk.sync_directory(directory, root_fd)\n",
        "",
        (_UPKEEP,),
    ),
    Mutation(
        "sync of records in the journal",
        "stor/disk/journal.py",
        "            self._disk.files.sync(fd)\n",
        "            pass\n",
        (
            "tests/test_journal.py"
            "::test_records_are_durable_before_they_are_said_to_be_and_before_another_segment",
        ),
    ),
    Mutation(
        "sync of a journal's header",
        "stor/disk/journal.py",
        "            files.sync(fd)\n",
        "",
        (_SEGMENT,),
    ),
    Mutation(
        "sync of a journal's name",
        "stor/disk/journal.py",
        "        self._disk.sync_directory(INDEX_DIRECTORY, root_fd)\n",
        "",
        (_SEGMENT,),
    ),
    Mutation(
        "sync of a base",
        "stor/disk/base.py",
        "            files.sync(fd)\n            files.forget_cached",
        "            files.forget_cached",
        (_BASE,),
    ),
    Mutation(
        "sync of a base's name",
        "stor/disk/base.py",
        "        self._disk.sync_directory(INDEX_DIRECTORY, root_fd)\n",
        "",
        (_BASE,),
    ),
    Mutation(
        "sync of a table that is kept",
        "stor/index/table.py",
        "                files.sync(fd)\n",
        "",
        (_TABLE,),
    ),
    Mutation(
        "sync of its name",
        "stor/index/table.py",
        "        files.sync(directory_fd)\n",
        "",
        (_TABLE,),
    ),
)

_CACHED = "tests/test_page_cache.py"

_UNSTORED = "tests/test_unstored.py"
_MOVES = "tests/test_moves.py"
_DRAIN = "tests/test_drain.py"

CHECKS = (
    Mutation(
        "nothing leaves a set before its record is durable",
        "stor/mirror/move.py",
        "            _require(source, noted)\n",
        "",
        (f"{_MOVES}::test_whichever_call_of_a_disk_fails_no_sample_is_lost",),
    ),
    Mutation(
        "only what another set holds leaves one",
        "stor/mirror/move.py",
        "if digest not in refused and self._elsewhere(source, digest)",
        "",
        (f"{_MOVES}::test_whichever_call_of_a_disk_fails_no_sample_is_lost",),
    ),
    Mutation(
        "nothing leaves a set of which a disk cannot be written",
        "stor/mirror/move.py",
        "            if not member.writable:\n",
        "            if False:\n",
        (f"{_MOVES}::test_nothing_leaves_a_set_of_which_a_disk_cannot_be_written",),
    ),
    Mutation(
        "the index strikes what leaves before its copies go",
        "stor/mirror/move.py",
        "                self._names.left(digest, source, size)\n",
        "                pass\n",
        (f"{_MOVES}::test_what_has_moved_is_on_its_new_set_alone_with_the_time_that_it_had",),
    ),
    Mutation(
        "what is whole on every disk of another set alone is taken off a set",
        "stor/mirror/move.py",
        "            if good == set(mirror.members):\n",
        "            if True:\n",
        (f"{_MOVES}::test_what_lacks_a_copy_elsewhere_stays",),
    ),
    Mutation(
        "an upload does not name a sample while it moves",
        "stor/mirror/move.py",
        "            async with turns.moving(sizes) as contests:\n",
        "            contests = {digest: Contest() for digest in sizes}\n            if True:\n",
        (f"{_MOVES}::test_an_upload_a_repair_and_a_move_of_one_sample_take_turns",),
    ),
    Mutation(
        "a repair does not make copies of a sample while it moves",
        "stor/mirror/repair.py",
        "        release = await self._turns.hold([digest])\n",
        "        release = await Turns().hold([digest])\n",
        (f"{_MOVES}::test_an_upload_a_repair_and_a_move_of_one_sample_take_turns",),
    ),
    Mutation(
        "what has left is put back by nobody",
        "stor/mirror/repair.py",
        "if found.absent and await self.has_left(digest, mirror):",
        "if False:",
        (f"{_MOVES}::test_what_has_left_is_put_back_by_nobody",),
    ),
    Mutation(
        "a rebuild puts back nothing that has left",
        "stor/jobs/rebuild.py",
        "            if not await self._repairs.has_left(one.digest, self._mirror)\n",
        "",
        (f"{_DRAIN}::test_what_has_left_and_stayed_on_a_disk_is_removed_and_put_back_nowhere",),
    ),
    Mutation(
        "a scrub removes what has left",
        "stor/jobs/scrub.py",
        "            outcome = await self._moves.finish(self._mirror, twice)\n",
        "            outcome = await self._moves.finish(self._mirror, {})\n",
        (
            f"{_DRAIN}::test_what_has_left_and_stayed_on_a_disk_is_removed_and_put_back_nowhere",
            "tests/test_scrub.py::test_a_sample_that_another_set_has_whole_is_taken_off_and_put_back_nowhere",
        ),
    ),
    Mutation(
        "two scrubs count a missing copy once",
        "stor/jobs/scrub.py",
        "missing and not whole.put_back",
        "False",
        ("tests/test_scrub.py::test_two_scrubs_of_a_set_at_once_count_a_missing_copy_once",),
    ),
    Mutation(
        "a rebalance moves no more than is still to go",
        "stor/jobs/carry.py",
        "taken + size > most_bytes or ",
        "",
        (f"{_DRAIN}::test_a_rebalance_of_sets_that_hold_less_than_a_batch_ends_at_two_percent",),
    ),
    Mutation(
        "a set that is drained gets nothing new",
        "stor/mirror/mirror.py",
        "        return not self.draining and all(",
        "        return all(",
        (
            f"{_DRAIN}::test_a_set_that_is_being_drained_gets_nothing_new_whatever_becomes_of_the_job",
        ),
    ),
    Mutation(
        "a set that was drained is taken out without a word",
        "stor/jobs/drain.py",
        "            self._mirrors.known_disks.emptied(member.root)\n",
        "            pass\n",
        (f"{_DRAIN}::test_a_drained_set_has_nothing_left_and_can_be_taken_out",),
    ),
    Mutation(
        "a drain does not end before uploads that began before it",
        "stor/jobs/drain.py",
        "            if mirror.writes:\n",
        "            if False:\n",
        (f"{_DRAIN}::test_what_an_upload_brings_that_began_before_goes_too",),
    ),
    Mutation(
        "a drain ends only when nothing is left",
        "stor/jobs/drain.py",
        "if remains.samples or job.not_mended or remains.strays:",
        "if False:",
        (f"{_DRAIN}::test_what_cannot_be_moved_is_named_and_the_job_fails_and_goes_on",),
    ),
    Mutation(
        "who is behind what a set had that was taken out is told so",
        "stor/mirror/landed.py",
        "        if number < self._untold:\n",
        "        if False:\n",
        (f"{_DRAIN}::test_a_follower_is_told_that_it_is_behind_what_a_set_had_that_was_taken_out",),
    ),
    Mutation(
        "what has no name after a crash is denied at once",
        "stor/mirror/learning.py",
        "if one.sequence > after and one.sha not in unnamed]",
        "if one.sequence > after]",
        (
            f"{_UNSTORED}::test_an_upload_that_a_crash_has_ended_before_its_name_is_denied_ever_after",
        ),
    ),
    Mutation(
        "what has no name after a crash may be on a disk that is away",
        "stor/mirror/learning.py",
        "            if not all(one.health.readable for one in mirror.members):\n",
        "            if False:\n",
        ("tests/test_completeness.py::TestWhatSpeaksAgainstANo::test_a_repair_that_waits",),
    ),
    Mutation(
        "what has no name after a crash is denied ever after",
        "stor/mirror/unstored.py",
        "if nowhere and not await self._record(mirror, nowhere):",
        "if nowhere and False:",
        (
            f"{_UNSTORED}::test_an_upload_that_a_crash_has_ended_before_its_name_is_denied_ever_after",
        ),
    ),
    Mutation(
        "what one disk has is not recorded as not stored",
        "stor/mirror/unstored.py",
        "        return not any(answers)\n",
        "        return not all(answers)\n",
        (f"{_UNSTORED}::test_what_has_a_name_on_one_disk_is_there",),
    ),
    Mutation(
        "what a failed upload has recorded is doubted",
        "stor/mirror/learning.py",
        "        else:  # there may be records of it\n",
        "        elif False:\n",
        (f"{_UNSTORED}::test_what_a_failed_upload_has_recorded_is_denied_ever_after",),
    ),
    Mutation(
        "a start learns what has left since a table",
        "stor/mirror/learning.py",
        "                    self.strike(record.sha, mirror)\n",
        "                    pass\n",
        (f"{_MOVES}::test_a_start_that_knows_an_older_state_learns_that_it_has_left",),
    ),
    Mutation(
        "a start learns what has left since a base",
        "stor/mirror/learning.py",
        "                    await self._strike_left(state, mirror)\n",
        "",
        (f"{_MOVES}::test_a_start_that_knows_an_older_state_learns_that_it_has_left",),
    ),
    Mutation(
        "a listing has what moves meanwhile",
        "stor/mirror/learning.py",
        "        self._listings.left(digest, size)\n",
        "",
        (f"{_MOVES}::test_a_listing_that_looks_at_the_old_set_after_the_new_one_misses_nothing",),
    ),
    Mutation(
        "the hash of what is read from the kernel's memory",
        "stor/disk/page_cache.py",
        "if hashlib.sha256(content).digest() != digest.raw:",
        "if False:",
        (f"{_CACHED}::TestReading::test_wrong_bytes_are_never_given",),
    ),
    Mutation(
        "what was right lately has not changed since it was read",
        "stor/disk/page_cache.py",
        "self._verified.knows(digest, mark) and Mark.of(self._files.fstat(fd)) == mark",
        "self._verified.knows(digest, mark)",
        (f"{_CACHED}::TestReading::test_what_was_right_lately_is_right_until_the_file_changes",),
    ),
    Mutation(
        "only what is in memory is read on the reactor's thread",
        "stor/disk/page_cache.py",
        "if size and not self._is_cached(fd, size):",
        "if False:",
        (f"{_CACHED}::TestReading::test_nor_begun_to_be_read",),
    ),
    Mutation(
        "only local file systems are read on the reactor's thread",
        "stor/disk/page_cache.py",
        "if kind not in _LOCAL_TYPES:",
        "if False:",
        (
            f"{_CACHED}::TestWhereItIsNotOffered::test_nor_where_to_open_a_file_may_take_more_than_memory",
        ),
    ),
    Mutation(
        "what is in memory is the disk's",
        "stor/disk/page_cache.py",
        "            self._check_device(status.st_dev)\n",
        "",
        (f"{_CACHED}::TestReading::test_another_file_system_is_not_the_disk",),
    ),
    Mutation(
        "sets that are not wholly known are asked before a 404",
        "stor/mirror/mirrors.py",
        'return None if known.unsure else NotFound(("disk",))',
        'return NotFound(("disk",))',
        (f"{_CACHED}::TestWhatNobodyHas::test_a_set_that_is_not_wholly_known_is_asked",),
    ),
    Mutation(
        "the file that an I/O error is about",
        "stor/mirror/member.py",
        "            self._weigh(kind, error, about)\n",
        "            self._weigh(kind, error, None)\n",
        (
            "tests/test_errnos.py"
            "::test_errors_over_three_files_in_a_row_are_suspicious_and_a_probe_decides",
        ),
    ),
    Mutation(
        "hash of a body",
        "stor/http/upload.py",
        "if hasher.digest() != digest.raw:",
        "if False:",
        ("tests/test_http_bodies.py::test_a_mismatch_names_both_hashes_and_keeps_nothing",),
    ),
    Mutation(
        "hash of a copy that is read",
        "stor/disk/copy.py",
        "if hasher.digest() != self.digest.raw:",
        "if False:",
        ("tests/test_disk.py::test_a_damaged_small_copy_is_never_opened",),
    ),
    Mutation(
        "last part held back until the hash is right",
        "stor/disk/copy.py",
        "if hasher.digest() != self.digest.raw:",
        "if offset == self.copy.size and hasher.digest() != self.digest.raw:",
        ("tests/test_disk.py::test_the_last_part_of_a_damaged_large_copy_is_never_read",),
    ),
    Mutation(
        "all of a copy read before it counts as verified",
        "stor/disk/copy.py",
        " or mark.size != sums.size",
        "",
        ("tests/test_verified.py::test_one_that_gave_only_a_part_is_not",),
    ),
    Mutation(
        "a look at the file after each part of it that is sent unread",
        "stor/disk/copy.py",
        "if not moved or mark != self.mark:",
        "if not moved:",
        ("tests/test_verified.py::test_one_that_was_cut_sends_nothing_more",),
    ),
    Mutation(
        "what is on its way checked by sums that are new",
        "stor/disk/copy.py",
        "for begin, last in sums.blocks(max(0, end - _ON_ITS_WAY_BYTES), end):",
        "for begin, last in sums.blocks(end, end):",
        ("tests/test_verified.py::test_a_change_that_sums_hide_ends_the_answer",),
    ),
    Mutation(
        "sums kept with the file that they were made from",
        "stor/disk/disk.py",
        "if opened.mark == made.mark:",
        "if True:",
        ("tests/test_verified.py::test_sums_of_a_file_that_is_another_by_now_are_not_kept",),
    ),
    Mutation(
        "a look at the file after all of it was read",
        "stor/disk/copy.py",
        "        if mark != self.mark or mark.size != sums.size:\n            return\n",
        "",
        (
            "tests/test_verified.py::test_what_was_changed_while_it_was_read_is_not_known_to_be_right",
        ),
    ),
    Mutation(
        "another mark is another file",
        "stor/disk/verified.py",
        "return known == mark and self._seconds()",
        "return known is not None and self._seconds()",
        ("tests/test_verified.py::test_another_mark_is_another_file",),
    ),
    Mutation(
        "hash from the first byte on after what was sent unread",
        "stor/content.py",
        "missing = offset - self._hashed_bytes",
        "missing = 0",
        ("tests/test_content.py::test_an_error_at_byte_k_of_a_proven_copy_goes_on_at_byte_k",),
    ),
    Mutation(
        "sum of each block",
        "stor/disk/copy.py",
        "if found != self._sums().of_block(begin):",
        "if False:",
        ("tests/test_corruption.py::test_a_large_sample_with_one_bad_copy_is_exact_at_once",),
    ),
    Mutation(
        "both copies compared where there are no block sums",
        "stor/content.py",
        "if other == data:",
        "if True:",
        ("tests/test_content.py::test_where_two_copies_differ_the_right_one_goes_on",),
    ),
    Mutation(
        "the only copy hashed before the last bytes of a part",
        "stor/content.py",
        "                await self._hash_all(source)\n            return data",
        "                pass\n            return data",
        (
            "tests/test_content.py::test_a_part_of_the_only_copy_is_not_given_to_its_end_when_the_copy_is_wrong",
        ),
    ),
    Mutation(
        "cut where no good copy is left",
        "stor/http/download.py",
        "            self._client.abort()\n",
        "            pass\n",
        (
            "tests/test_corruption.py"
            "::test_two_bad_copies_are_an_error_until_it_is_posted_again[3145728-middle bit]",
        ),
    ),
    Mutation(
        "copy on every disk, as seen by an upload",
        "stor/mirror/put.py",
        "whole = not (survey.lacking or survey.unequal or survey.trouble or mending)",
        "whole = not (survey.unequal or survey.trouble or mending)",
        (_LOST_COPY,),
    ),
    Mutation(
        "copy on every disk, as seen by a mirror",
        "stor/mirror/mirror.py",
        "return [m for m, answer in self.answers if not isinstance(answer, Copy) and m.writable]",
        "return []",
        (_LOST_COPY,),
    ),
    Mutation(
        "copies of one size",
        "stor/mirror/put.py",
        "whole = not (survey.lacking or survey.unequal or survey.trouble or mending)",
        "whole = not (survey.lacking or survey.trouble or mending)",
        ("tests/test_corruption.py::test_posting_again_repairs_a_copy_of_the_wrong_size",),
    ),
    Mutation(
        "copy that is being put back",
        "stor/mirror/put.py",
        "whole = not (survey.lacking or survey.unequal or survey.trouble or mending)",
        "whole = not (survey.lacking or survey.unequal or survey.trouble)",
        (
            "tests/test_commit_order.py"
            "::test_a_copy_that_is_put_back_is_durable_when_the_sample_counts_as_stored",
        ),
    ),
    Mutation(
        "a no of a disk that is complete, and of no other",
        "stor/mirror/member.py",
        "return self.health.sound and self.complete",
        "return self.health.sound",
        (_LACKING,),
    ),
    Mutation(
        "an error of another disk speaks against a no",
        "stor/mirror/search.py",
        "            or mirror in self._failed\n",
        "",
        (f"{_AGAINST}::test_an_error_of_the_copy_beside_it[asked-5-0]",),
    ),
    Mutation(
        "a note to repair speaks against a no",
        "stor/mirror/search.py",
        "any(self._digest in m.corrupt or self._digest in m.noted for m in mirror.members)",
        "any(self._digest in m.corrupt for m in mirror.members)",
        (f"{_AGAINST}::test_a_repair_that_waits[asked]",),
    ),
    Mutation(
        "a sample is there when each disk that lacked it has it",
        "stor/jobs/rebuild.py",
        "        if not where >= targets[digest]:\n",
        "        if not where:\n",
        (f"{_INTERRUPTED}[4]",),
    ),
    Mutation(
        "a disk that lacks samples after a comparison is not complete",
        "stor/jobs/rebuild.py",
        "if member.writable and member not in self._short and not member.complete:",
        "if member.writable and not member.complete:",
        (_INTERRUPTED,),
    ),
    Mutation(
        "disks that the state directory knows",
        "stor/disk/identity.py",
        "self._uuids = {r: disk.uuid for r, disk in remembered.items() if r in self._set_of}",
        "self._uuids: dict[str, str] = {}",
        (f"{_KNOWN}::test_an_empty_mount_point_is_no_new_disk_where_another_is_remembered",),
    ),
    Mutation(
        "what is missing when a disk is adopted",
        "stor/disk/identity.py",
        "if known is not None and known not in held:",
        "if False:",
        (f"{_COMPLETE}::TestAdopting::test_both_replaced_one_after_the_other",),
    ),
    Mutation(
        "a scrub reads the disk and not what is in memory",
        "stor/disk/verification.py",
        "        # What is in memory may be right where the disk is not.\n"
        "        self._forget(opened)\n",
        "",
        (f"{_SCRUB}::test_what_is_in_memory_does_not_hide_what_the_disk_has",),
    ),
    Mutation(
        "a scrub compares names",
        "stor/jobs/scrub.py",
        "if lacking and await self._is_missing(Digest(sha), lacking):",
        "if False:",
        (f"{_SCRUB}::test_a_copy_that_is_missing_is_put_back_whichever_disk_is_scrubbed",),
    ),
    Mutation(
        "directories that only the other disk has are compared",
        "stor/jobs/scrub.py",
        "others = sorted(theirs - {leaf for _, leaf in own})",
        "others: list[str] = []",
        (f"{_SCRUB}::test_a_copy_that_is_missing_is_put_back_whichever_disk_is_scrubbed",),
    ),
    Mutation(
        "a scrub skips samples of the same batch only",
        "stor/jobs/scrub.py",
        "cursor.sample if cursor.end == end else -1",
        "cursor.sample",
        (f"{_SCRUB}::test_a_batch_that_is_another_after_a_restart_is_read_from_its_beginning",),
    ),
    Mutation(
        "what a scrub could not mend is tried again",
        "stor/jobs/scrub.py",
        "            self._repairs.report(digest, self._mirror)\n",
        "",
        (f"{_SCRUB}::test_a_copy_that_cannot_be_read_is_put_back",),
    ),
    Mutation(
        "what was compared of other disks says nothing of these",
        "stor/jobs/rebuild.py",
        "return cursor if cursor.disks == disks else cls(disks)",
        "return cursor",
        (f"{_REBUILD}::test_what_somebody_may_have_changed_is_compared_anew",),
    ),
    Mutation(
        "names that are being made durable are none to rely on",
        "stor/mirror/repair.py",
        "        self._mending |= keys\n",
        "",
        (f"{_REBUILD}::test_nobody_relies_on_a_name_that_is_not_durable_yet",),
    ),
    Mutation(
        "a paused job rests",
        "stor/jobs/run.py",
        "        if self._halted:\n            raise Halted",
        "        if False:\n            raise Halted",
        ("tests/test_jobs.py::test_a_job_is_paused_and_goes_on_where_it_was",),
    ),
    Mutation(
        "a job makes way for clients",
        "stor/jobs/run.py",
        "while member.under_way and self.clock.seconds() < until:",
        "while False:",
        ("tests/test_jobs.py::test_a_job_waits_for_clients_of_its_disk_but_not_for_ever",),
    ),
    Mutation(
        "no error of the disk's is called a bad copy",
        "stor/jobs/scrub.py",
        "            if not member.health.sound:\n                raise NotNow(member.fault or",
        "            if False:\n                raise NotNow(member.fault or",
        ("tests/test_jobs.py::test_errors_of_many_copies_at_once_are_the_disk_s",),
    ),
    Mutation(
        "an adopted disk is not complete",
        "stor/cli/adopt.py",
        "complete=(), adopted=True",
        "complete=marker.complete, adopted=True",
        (_LACKING,),
    ),
    Mutation(
        "proof with every disk of the set",
        "stor/disk/identity.py",
        "marker is not None and uuids <= set(marker.complete)",
        "marker is not None and bool(marker.complete)",
        ("tests/test_completeness.py::test_a_proof_does_not_hold_with_another_disk_in_the_set",),
    ),
    Mutation(
        "root on the file system of /",
        "stor/disk/disk.py",
        "if device == self._forbidden_device:",
        "if False:",
        (_MOUNT,),
    ),
    Mutation(
        "another file system than before",
        "stor/disk/disk.py",
        "if not probing and device != self._device:",
        "if False:",
        (_MOUNT,),
    ),
    Mutation(
        "mount check after a look at a name",
        "stor/disk/disk.py",
        "        self._check_root()\n        if trouble",
        "        if trouble",
        (_LOOKED,),
    ),
    Mutation(
        "mount check of a look after it, not before",
        "stor/disk/disk.py",
        "        status, trouble = None, None\n",
        "        status, trouble = None, None\n        self._check_root()\n"
        "        self._check_root = lambda: None\n",
        (_LOOKED,),
    ),
    Mutation(
        "room of a mirror that is drawn by weights of before",
        "stor/mirror/mirrors.py",
        "return mirror if fits and mirror.prompt else None",
        "return mirror if mirror.prompt else None",
        (_CHOOSER,),
    ),
    Mutation(
        "a mirror that is whole again after the others were weighed",
        "stor/mirror/mirrors.py",
        "if any(mirror.prompt for mirror in weights.left_out):",
        "if False:",
        (_BACK,),
    ),
    Mutation(
        "no new samples for a disk that hangs",
        "stor/mirror/member.py",
        "return self.health.state is State.ONLINE and self._oldest_seconds < HANGS_SECONDS",
        "return self.writable",
        (_HANGING,),
    ),
    Mutation(
        "state of a mirror that is drawn by weights of before",
        "stor/mirror/mirrors.py",
        "return mirror if fits and mirror.prompt else None",
        "return mirror if fits else None",
        (_CHOOSER,),
    ),
    Mutation(
        "trust in proxies alone for the PROXY protocol, too",
        "stor/http/channel.py",
        "return super().getPeer() if trusted else peer",
        "return super().getPeer()",
        ("tests/test_access.py::test_the_proxy_protocol_is_believed_of_trusted_proxies_alone",),
    ),
    Mutation(
        "trust in proxies alone for who the client is",
        "stor/http/proxies.py",
        "if not forwarded or not self.trust(peer):",
        "if not forwarded:",
        ("tests/test_access.py::test_the_client_behind_proxies",),
    ),
    Mutation(
        "no password in a log",
        "stor/quickstart.py",
        "    if not private:\n",
        "    if not user:\n",
        ("tests/test_quickstart.py",),
    ),
    Mutation(
        "no client may write a line of the log",
        "stor/http/access.py",
        "return quote(text[:_WORD_BYTES], safe=_WORD_CHARACTERS)",
        'return text[:_WORD_BYTES].decode("latin-1")',
        ("tests/test_access.py::test_what_a_client_sent_is_one_word_of_the_log",),
    ),
    Mutation(
        "no stranger sees where disks are mounted",
        "stor/http/api.py",
        'answer = answer if request.asked_as != "-" else _discreet(answer)',
        "answer = answer",
        (
            "tests/test_http_status.py::test_with_status_auth_no_stranger_is_told_where_a_disk_is_mounted",
        ),
    ),
    Mutation(
        "no name over an existing one",
        "stor/disk/syscalls.py",
        "        os.link(f",
        "        if os.access(path, os.F_OK, dir_fd=directory_fd):\n"
        "            os.unlink(path, dir_fd=directory_fd)\n"
        "        os.link(f",
        ("tests/test_disk.py::test_a_name_is_never_given_over_another_file",),
    ),
    Mutation(
        "good copy that is there already stays",
        "stor/disk/staged.py",
        "reason = self._unfit(digest, root_fd, bad)",
        'reason = "never looked at"',
        ("tests/test_disk.py::test_a_good_copy_that_is_there_already_stays",),
    ),
    Mutation(
        "exchange of names, by which a bad copy is replaced while its name stays",
        "stor/disk/disk.py",
        "        self._exchanges = True\n",
        "        self._exchanges = False\n",
        (
            "tests/test_disk.py::test_a_directory_that_has_a_samples_name_keeps_it_until_the_sample_has_it",
        ),
    ),
    Mutation(
        "one Stor at a time has a disk",
        "stor/disk/identity.py",
        "                files.lock(fd)\n            except BlockingIOError",
        "                pass\n            except BlockingIOError",
        ("tests/test_disk_lock.py::test_a_disk_that_one_stor_uses_is_away_for_another",),
    ),
    Mutation(
        "lock of the disk that is there now",
        "stor/disk/identity.py",
        "return (mine.st_dev, mine.st_ino) == (found.st_dev, found.st_ino)",
        "return True",
        ("tests/test_disk_lock.py::test_a_disk_in_the_place_of_another_is_locked_in_its_turn",),
    ),
    Mutation(
        "lock of every disk that a Stor writes",
        "stor/fleet.py",
        "            DiskLock(disk) if self._writer is None else None,\n",
        "            None,\n",
        (
            "tests/integration/test_known_disks.py::TestTwoStorsOnTheSameDisks"
            "::test_the_second_leaves_them_alone_and_the_first_goes_on",
        ),
    ),
    Mutation(
        "disk that another Stor has is away",
        "stor/mirror/member.py",
        "        found = await self._keep(found, writable=writable and not found.held)\n",
        "",
        (
            "tests/integration/test_known_disks.py::TestTwoStorsOnTheSameDisks"
            "::test_the_second_leaves_them_alone_and_the_first_goes_on",
        ),
    ),
    Mutation(
        "disk that fails a test write is suspect, not read-only",
        "stor/mirror/member.py",
        "            if fault is Fault.DISK:\n                return attrs.evolve(found, failing=",
        "            if False:\n                return attrs.evolve(found, failing=",
        ("tests/test_unwritable.py::test_a_dead_disk_is_not_called_read_only",),
    ),
    Mutation(
        "file of another user is no fault of its disk",
        "stor/disk/errnos.py",
        "        errno.EACCES,\n",
        "",
        ("tests/integration/test_other_owner.py::TestASampleOfMode0600::test_many_samples",),
    ),
    Mutation(
        "second name of a bad copy, before the new one is renamed over it",
        "stor/disk/disk.py",
        "            self.files.link(name, path, root_fd)\n",
        "            raise PermissionError\n",
        ("tests/test_disk.py::test_a_name_is_never_gone_while_a_bad_copy_is_replaced",),
    ),
    Mutation(
        "lock of a copy that is renamed over a bad one",
        "stor/disk/disk.py",
        "                self.files.lock(fd)  # so that it is not swept\n",
        "",
        ("tests/test_disk.py::test_a_name_is_never_gone_while_a_bad_copy_is_replaced",),
    ),
    Mutation(
        "name of an upload that failed is taken back",
        "stor/disk/staged.py",
        "self.disk.claims.fail(digest, lambda: self._unlink(digest, root_fd))",
        "self.disk.claims.fail(digest, lambda: None)",
        ("tests/test_disk.py::test_discard_leaves_nothing_after_a_failure_anywhere",),
    ),
    Mutation(
        "name that another upload relies on",
        "stor/disk/durable.py",
        "if claim.copies or not claim.made or claim.kept:",
        "if not claim.made:",
        (
            "tests/test_concurrent_uploads.py::test_a_name_that_another_upload_relies_on_is_not_taken_away",
        ),
    ),
    Mutation(
        "what S3 refuses of one sample makes S3 doubtful",
        "stor/s3/bucket.py",
        "or error.meaning is not Meaning.SAMPLE",
        "or error.meaning is not None",
        ("tests/test_s3_store.py::test_a_refused_sample_is_no_reason_to_probe",),
    ),
    Mutation(
        "three failures make S3 unavailable without a probe",
        "stor/s3/bucket.py",
        "            self._failures = 0\n            Deferred.fromCoroutine(self.probe())",
        '            self._down("s3: three failures")',
        ("tests/test_s3_store.py::test_a_sample_that_cannot_be_had_keeps_no_other_away",),
    ),
    Mutation(
        "any 404 of S3 says that the sample is not there",
        "stor/s3/bucket.py",
        "if meaning is Meaning.ABSENT:",
        "if response.code == 404:",
        ("tests/test_s3_store.py::test_a_sample_that_cannot_be_had_keeps_no_other_away",),
    ),
)

HANDOVER = (
    Mutation(
        "an answer that did not say that its connection ends",
        "stor/http/site.py",
        "elif not (channel.requests and channel.requests[0].startedWriting):",
        "elif True:",
        (
            "tests/test_http_draining.py::"
            "test_a_request_behind_an_answer_that_did_not_say_the_connection_ends_is_answered",
        ),
    ),
    Mutation(
        "plain requests put off the time-out",
        "stor/http/channel.py",
        "self._answered_seconds = self.site.clock.seconds()",
        "pass",
        (
            "tests/test_http_slow_clients.py::TestSlowSenders::"
            "test_silence_is_counted_from_the_last_answer_however_plain_its_request",
        ),
    ),
    Mutation(
        "what is known of heads is counted in bytes",
        "stor/http/fast_path.py",
        "            self._blocks_bytes += len(block)\n",
        "            self._blocks_bytes += 1\n",
        ("tests/test_hot.py::test_what_is_known_of_heads_is_bounded",),
    ),
    Mutation(
        "answers that are not sent yet when a connection leaves",
        "stor/http/channel.py",
        "elif self._socket.connected and (self._unsent_bytes or not self._direct):",
        "elif False:",
        ("tests/test_http_handover.py::test_all_answers_are_sent_before_it_leaves",),
    ),
    Mutation(
        "the checksum of what processes share",
        "stor/shared.py",
        "if _checksum(number, value) == checksum:",
        "if True:",
        ("tests/test_processes.py::test_what_is_shared_is_whole_whenever_its_writer_is_killed",),
    ),
)

INDEX = (
    Mutation(
        "what a record of the journal must be",
        "stor/disk/journal.py",
        "if zlib.crc32(view[offset:end], seed) == checksum:",
        "if True:",
        (
            "tests/test_journal.py::test_a_flipped_bit_costs_its_record_and_is_told_unless_it_is_at_the_end",
        ),
    ),
    Mutation(
        "damage before the end of a journal",
        "stor/disk/journal.py",
        "        if durable > end:\n",
        "        if False:\n",
        (
            "tests/test_journal.py::test_a_flipped_bit_costs_its_record_and_is_told_unless_it_is_at_the_end",
        ),
    ),
    Mutation(
        "records behind lost ones",
        "stor/disk/journal.py",
        "            if position.records > self._cut.get(position.segment, position.records):",
        "            if False:",
        ("tests/test_journal.py::test_what_was_appended_behind_lost_records_does_not_count",),
    ),
    Mutation(
        "nothing behind half a write",
        "stor/disk/journal.py",
        "                self._closed = True\n                raise",
        "                raise",
        ("tests/test_journal.py::test_half_a_write_is_followed_by_nothing",),
    ),
    Mutation(
        "damage is told before it is merged away",
        "stor/disk/base.py",
        "        check()\n",
        "",
        ("tests/test_base.py::test_damage_is_not_merged_away_before_it_is_known_to_be_told",),
    ),
    Mutation(
        "a record in shared memory is whole",
        "stor/index/recent.py",
        "if zlib.crc32(data[: _RECORD.size], number & 0xFFFFFFFF) == checksum:",
        "if True:",
        ("tests/test_recent.py::test_a_record_that_is_not_whole_is_not_believed",),
    ),
    Mutation(
        "names are dropped once all readers have the table",
        "stor/index/index.py",
        "        if not self._recent.confirmed(contents.generation):\n            return False\n",
        "",
        ("tests/test_index.py::test_a_reader_that_lags_behind_denies_nothing",),
    ),
    Mutation(
        "who makes a table imports nothing of the current directory",
        "stor/index/merge.py",
        '[sys.executable, "-P", "-m", "stor.index.merge"]',
        '[sys.executable, "-m", "stor.index.merge"]',
        ("tests/test_index.py::test_a_child_imports_nothing_of_the_current_directory",),
    ),
    Mutation(
        "no set is complete without a table",
        "stor/index/index.py",
        "self._complete = frozenset() if self._table is None else self._recent.complete",
        "self._complete = self._recent.complete",
        ("tests/test_index.py::test_a_table_that_cannot_be_used_makes_no_set_complete",),
    ),
    Mutation(
        "a table is what was kept",
        "stor/index/table.py",
        "    if checksum != expected or at != contents.length:\n",
        "    if False:\n",
        ("tests/test_table.py::test_every_damage_to_a_table_is_found_when_it_is_loaded",),
    ),
    Mutation(
        "the journal is synced before a copy has its name",
        "stor/mirror/write.py",
        "        self.copy.sync_record(root_fd)\n",
        "",
        (_DURABLE,),
    ),
    Mutation(
        "what the index knows to be on a set is gone only when all its disks say so",
        "stor/mirror/search.py",
        "        if mirror in self._holders:\n            return False\n",
        "",
        (f"{_NAMES}::test_a_copy_removed_by_hand_is_no_404_while_the_other_disk_is_away",),
    ),
    Mutation(
        "no sample is struck from the index while it may be arriving",
        "stor/mirror/learning.py",
        "self.broken is not None or not self.quiet(mirror, since):\n            return",
        "self.broken is not None:\n            return",
        (f"{_NAMES}::test_a_sample_that_arrives_while_its_disks_are_asked_is_not_struck",),
    ),
    Mutation(
        "a journal that is shorter than it was is not believed",
        "stor/disk/names.py",
        "if journal.end < least or identity != proof.identity:",
        "if False:",
        (f"{_NAMES}::test_a_disk_that_was_set_back_is_walked_anew",),
    ),
    Mutation(
        "a disk that somebody changed while Stor was away is walked",
        "stor/disk/names.py",
        "if used != proof.inodes:",
        "if False:",
        (f"{_NAMES}::test_files_that_came_or_went_after_a_clean_end_have_the_disk_walked",),
    ),
    Mutation(
        "sync of what a process that was killed has named",
        "stor/disk/names.py",
        "if names.journal.end > names.durable or names.highest >= names.low:",
        "if False:",
        (
            f"{_NAMES}::test_what_a_process_that_was_killed_has_named_is_synced_before_the_disk_is_used",
        ),
    ),
    Mutation(
        "another journal than the disk had",
        "stor/disk/names.py",
        "if journal.end < least or identity != proof.identity:",
        "if journal.end < least:",
        (_LOST,),
    ),
    Mutation(
        "what is known of a journal in the state directory",
        "stor/disk/names.py",
        "identity, least = noted or (proof.identity, proof.journal)",
        "identity, least = proof.identity, proof.journal",
        (_LOST,),
    ),
    Mutation(
        "a disk is not known once its journal was found to be damaged",
        "stor/mirror/learning.py",
        "if names is None or names is not state.learnt or names.damage is not None:",
        "if names is None or names is not state.learnt:",
        (
            f"{_LOST_FILE}::test_a_disk_whose_journal_turns_out_to_be_damaged_is_not_known_from_then_on",
        ),
    ),
    Mutation(
        "what was found to be damaged is not opened again",
        "stor/mirror/member.py",
        "if self.damage is not None:",
        "if False:",
        (_LOST,),
    ),
    Mutation(
        "a disk is walked whose journal has a torn end",
        "stor/disk/names.py",
        "elif journal.torn:",
        "elif False:",
        (f"{_LOST_FILE}::test_a_copy_whose_record_was_torn_is_found",),
    ),
    Mutation(
        "a disk that has lost its index is compared with its set",
        "stor/disk/names.py",
        "    if not new:\n        mark_complete",
        "    if False:\n        mark_complete",
        (_LOST,),
    ),
    Mutation(
        "a disk that has lost its index and is not written proves nothing",
        "stor/mirror/member.py",
        "self._doubted = not new  #",
        "self._doubted = False  #",
        (f"{_LOST_FILE}::test_a_disk_that_has_lost_its_index_and_is_not_written_proves_nothing",),
    ),
    Mutation(
        "an upload tells the index before it is acknowledged",
        "stor/mirror/write.py",
        "            self._registration.done(self.written_bytes)\n",
        "            pass\n",
        (f"{_NAMES}::test_what_is_stored_afterwards_is_known_at_once_and_what_fails_is_not",),
    ),
    Mutation(
        "a writer believes the index of no set before it has learnt it",
        "stor/mirror/learning.py",
        "            index.set_complete(number, False)\n",
        "            pass\n",
        (f"{_SHARED}::test_of_a_set_that_a_new_writer_has_not_heard_nothing_is_denied",),
    ),
    Mutation(
        "a table that was kept does not have what another host put on a disk since",
        "stor/index/table.py",
        "else min(self.sequence - 1, its.highest)",
        "else self.sequence - 1",
        ("tests/test_table.py::test_a_table_says_what_it_has_of_a_disk",),
    ),
    Mutation(
        "a table that was kept does not have what is in a journal that was begun anew",
        "stor/index/table.py",
        "if attrs.evolve(its, highest=disk.highest) == disk and disk.journal:",
        "if its.uuid == disk.uuid:",
        ("tests/test_table.py::test_a_table_says_what_it_has_of_a_disk",),
    ),
    Mutation(
        "who follows is told of what a failed upload could not take back",
        "stor/mirror/write.py",
        "                size = self.written_bytes if shown else None\n",
        "                size = None\n",
        (
            "tests/test_landed.py::test_what_a_failure_has_left_is_told_before_a_client_hears_that_it_is_stored",
        ),
    ),
    Mutation(
        "and of what a small one could not",
        "stor/mirror/small_writes.py",
        "size = len(self.content) if error is None or self.shown else None",
        "size = len(self.content) if error is None else None",
        (
            "tests/test_landed.py::test_what_a_failure_has_left_is_told_before_a_client_hears_that_it_is_stored",
        ),
    ),
    Mutation(
        "who follows is not told of what comes after a sample that is on its way",
        "stor/mirror/landed.py",
        "return min(self._numbers.low - 1, self.highest)",
        "return self.highest",
        ("tests/test_landed.py::test_a_sample_that_is_on_its_way_holds_back_those_after_it",),
    ),
    Mutation(
        "a journal that began later does not tell what landed before",
        "stor/disk/journal.py",
        "return header.highest <= after if self._first > 1 else header.low <= after + 1",
        "return True",
        ("tests/test_landed.py::test_a_cursor_from_before_the_journals_is_gone",),
    ),
    Mutation(
        "what a scrub meets that the index does not know is taken in",
        "stor/jobs/scrub.py",
        "                self._learning.was_wrong(digest, self._mirror, since)\n",
        "                pass\n",
        ("tests/test_scrub.py::test_what_somebody_has_put_on_the_disks_by_hand_is_taken_in",),
    ),
    Mutation(
        "a set is known when every disk that is there is",
        "stor/mirror/learning.py",
        "and all(map(self._knows, present))",
        "",
        (
            "tests/test_lost_index.py::test_a_disk_whose_journal_turns_out_to_be_damaged_is_not_known_from_then_on",
        ),
    ),
)

_MANY = "tests/test_client_many.py"
_FILES = "tests/test_client_files.py"

CLIENT = (
    Mutation(
        "what is fetched is hashed",
        "stor/client/get.py",
        "if self._hasher.digest() != self._digest.raw:",
        "if False:",
        (f"{_MANY}::TestGet::test_what_is_not_the_sample_gets_no_name",),
    ),
    Mutation(
        "what is half fetched is removed",
        "stor/client/get.py",
        "                os.unlink(self._aside)\n",
        "                pass\n",
        (f"{_MANY}::TestGet::test_what_ends_half_way_leaves_nothing",),
    ),
    Mutation(
        "what is there is hashed",
        "stor/client/get.py",
        "if isinstance(hashed, Hashed) and hashed.digest == digest",
        "if isinstance(hashed, Hashed)",
        (f"{_MANY}::TestGet::test_what_is_there_and_wrong_is_replaced",),
    ),
    Mutation(
        "a file that changes while it is hashed",
        "stor/client/files.py",
        "        return None\n    return Hashed(",
        "        pass\n    return Hashed(",
        (f"{_FILES}::TestAFileThatChanges::test_that_never_keeps_still_is_given_up",),
    ),
    Mutation(
        "a file that has changed since it was hashed",
        "stor/client/files.py",
        "            self.expect_unchanged()\n        except BaseException:",
        "            pass\n        except BaseException:",
        (f"{_FILES}::TestAFileThatChanges::test_is_noticed_when_it_is_opened_again",),
    ),
    Mutation(
        "a large file that changes while it is sent",
        "stor/client/put.py",
        "            await self._reading.run(file.expect_unchanged)\n",
        "",
        (
            f"{_MANY}::TestPut"
            "::test_a_large_file_that_is_written_to_after_its_last_byte_was_read_is_sent_again",
        ),
    ),
    Mutation(
        "one file is sent alone before all others",
        "stor/client/put.py",
        "        if not self._welcome:\n",
        "        if False:\n",
        (f"{_MANY}::TestPut::test_a_wrong_password_is_tried_once",),
    ),
    Mutation(
        "samples come in the order of inodes",
        "stor/mirror/disk_order.py",
        "in_order = sorted(zip(inodes, held, strict=True))",
        "in_order = list(zip(inodes, held, strict=True))",
        ("tests/test_http_batch.py::TestDiskOrder::test_samples_come_in_the_order_of_inodes",),
    ),
    Mutation(
        "the sets of a batch are side by side",
        "stor/mirror/disk_order.py",
        "places += [(at / len(held), sha)",
        "places += [(float(len(places)), sha)",
        ("tests/test_http_batch.py::TestDiskOrder::test_the_sets_are_side_by_side",),
    ),
    Mutation(
        "a list is sorted in parts of a bounded size",
        "stor/http/batch.py",
        "min(begin + self._window * SHA_BYTES, len(raw))",
        "len(raw)",
        ("tests/test_http_batch.py::test_another_order_is_made_of_so_many_at_a_time",),
    ),
    Mutation(
        "what is no TAR is not the end",
        "stor/client/get.py",
        "        except ValueError:\n            pass  # no TAR",
        "        except ZeroDivisionError:\n            pass  # no TAR",
        (f"{_MANY}::TestGetTogether::test_after_an_answer_that_is_none_each_is_fetched_by_itself",),
    ),
    Mutation(
        "an answer of many is no further ahead than there is room",
        "stor/http/batch.py",
        "            if ahead and not self._ahead.take():\n                return\n",
        "            if ahead:\n                self._ahead.kept_bytes += _WHOLE_BYTES\n",
        ("tests/test_http_batch.py::test_without_room_ahead_one_is_opened_after_the_other",),
    ),
    Mutation(
        "nothing more is opened for a client that is gone",
        "stor/http/batch.py",
        "        self._closed = True\n        give_up",
        "        give_up",
        ("tests/test_http_batch.py::test_for_a_client_that_is_gone_nothing_more_is_opened",),
    ),
)

_MIRROR = "tests/test_client_mirror.py"

_ROUNDS = "tests/test_small_writes.py::test_samples_are_durable_when_they_are_answered"

SYNCS += (
    Mutation(
        "sync of a round",
        "stor/disk/staged.py",
        "                self._disk.files.sync_all(root_fd)\n",
        "",
        (_ROUNDS,),
    ),
    Mutation(
        "sync of the only body in a round",
        "stor/disk/staged.py",
        "                self._staged[small].sync()\n",
        "                pass\n",
        (_ROUNDS,),
    ),
    Mutation(
        "sync of the journal in a round of one",
        "stor/disk/staged.py",
        "                journal.sync(root_fd)\n            except OSError as error:\n",
        "                pass\n            except OSError as error:\n",
        (_ROUNDS,),
    ),
    Mutation(
        "sync of the directories of the only name in a round",
        "stor/disk/staged.py",
        "                    self._staged[small].sync_directories(small.digest, root_fd)\n",
        "                    pass\n",
        (_ROUNDS,),
    ),
    Mutation(
        "a mirror's cursor waits for its copies to be durable",
        "stor/client/mirror.py",
        "            await self._target.sync()\n",
        "",
        (f"{_MIRROR}::test_a_cursor_is_never_ahead_of_what_is_durable",),
    ),
    Mutation(
        "a mirror's position is durable before it has its name",
        "stor/client/position.py",
        "            fsync(file.fileno())\n",
        "",
        (f"{_MIRROR}::test_a_position_has_its_name_once_it_is_durable",),
    ),
)

CLIENT += (
    Mutation(
        "a mirror keeps no position of what it was stopped in",
        "stor/client/mirror.py",
        "        if self._stopped:\n            raise Stopped",
        "        if False:\n            raise Stopped",
        (f"{_MIRROR}::test_what_it_is_stopped_in_is_looked_at_again",),
    ),
    Mutation(
        "what a mirror could not copy is kept",
        "stor/client/mirror.py",
        "                self._again[sample.digest] = sample\n",
        "                pass\n",
        (f"{_MIRROR}::test_what_fails_is_kept_and_tried_again",),
    ),
    Mutation(
        "a mirror sends one sample alone before all others",
        "stor/client/relay.py",
        "        if left and not self._welcome:\n",
        "        if False:\n",
        (f"{_MIRROR}::test_one_sample_is_sent_alone_before_all_others",),
    ),
    Mutation(
        "what a mirror has fetched is hashed before it is sent",
        "stor/client/relay.py",
        "        if last and self._hasher.digest() != self._digest.raw:",
        "        if False:",
        (f"{_MIRROR}::test_what_is_not_the_sample_is_not_sent",),
    ),
    Mutation(
        "a damaged file of a mirror is not stored",
        "stor/client/put.py",
        "            if self._by_name and named(",
        "            if False and named(",
        (f"{_MIRROR}::test_from_a_directory_what_is_damaged_is_named_and_not_stored",),
    ),
)

EXACT = (
    Mutation(
        "what is moved is hashed once more",
        "stor/disk/staged.py",
        "if summer is not None and summer.denies(digest, size):",
        "if False:",
        ("tests/test_move_upload.py::test_what_comes_back_wrong_from_a_disk_gets_no_name",),
    ),
    Mutation(
        "what is moved of an upload in parts is hashed once more",
        "stor/mirror/partial.py",
        "return self._partials.maker(BlockSummer(hashlib.sha256()), None)",
        "return self._partials.maker(BlockSummer(), None)",
        ("tests/test_partial_uploads.py::test_what_comes_back_wrong_from_a_disk_gets_no_name",),
    ),
    Mutation(
        "what was moved by an earlier request is hashed once more",
        "stor/mirror/partial.py",
        "it is now.\n        self._partials.forget(self._digest)\n",
        "it is now.\n        pass\n",
        ("tests/test_partial_uploads.py::test_what_comes_back_wrong_from_a_disk_gets_no_name",),
    ),
    Mutation(
        "what has failed does not count, and comes again elsewhere",
        "stor/mirror/write.py",
        "            await self._keep_reserve()\n"
        "        self.written_bytes += sum(map(len, chunks))\n",
        "            self.written_bytes += sum(map(len, chunks))\n"
        "            await self._keep_reserve()\n",
        (
            "tests/test_move_upload.py"
            "::test_a_set_that_is_full_to_its_reserve_under_a_body_of_unknown_length",
        ),
    ),
    Mutation(
        "a file is as large as what was written",
        "stor/disk/staged.py",
        "        if status.st_size != size:\n",
        "        if False:\n",
        (f"{_EXACT}::test_a_file_that_is_not_as_large_as_what_was_written_gets_no_name",),
    ),
    Mutation(
        "a descriptor that is closed is not used",
        "stor/disk/staged.py",
        "        fd, self._fd = self._fd, _CLOSED\n",
        "        fd = self._fd\n",
        (f"{_EXACT}::test_every_name_has_its_bytes",),
    ),
    Mutation(
        "a step begins when the one before has ended",
        "stor/mirror/write.py",
        "        if last is None or last.called:\n            step = begin()",
        "        if True:\n            step = begin()",
        (f"{_EXACT}::test_every_name_has_its_bytes",),
    ),
    Mutation(
        "what hangs is given up once it has ended",
        "stor/mirror/small_writes.py",
        "        if self._last is None or self._last.called:\n            return give_back()",
        "        if True:\n            return give_back()",
        (f"{_EXACT}::test_every_name_has_its_bytes",),
    ),
)

EXACT += (
    Mutation(
        "a failed upload is doubted by the next start, too",
        "stor/disk/names.py",
        "what = self.durable, self.cursor, inodes, self.identity, self.low",
        "what = self.durable, self.cursor, inodes, self.identity, self.highest + 1",
        (
            "tests/test_unstored.py"
            "::test_what_a_failed_upload_has_recorded_just_before_the_end_is_denied_ever_after",
        ),
    ),
)

MUTATIONS = SYNCS + CHECKS + HANDOVER + INDEX + CLIENT + EXACT


class Trials:
    """A copy of the source in which guards are taken out."""

    def __init__(self, path: Path) -> None:
        self._path = path
        for name in _COPIED:
            if (REPOSITORY / name).is_dir():
                shutil.copytree(REPOSITORY / name, path / name, ignore=_CACHES)
            else:
                shutil.copy(REPOSITORY / name, path / name)

    def run(self, tests: tuple[str, ...], mutation: Mutation | None = None) -> str | None:
        """The first test that fails, `None` when all pass. Raises `RuntimeError` when none runs."""
        # All anew: bytecode is told from older bytecode by size and whole seconds only.
        shutil.rmtree(self._path / "stor")
        shutil.copytree(REPOSITORY / "stor", self._path / "stor", ignore=_CACHES)
        if mutation is not None:
            file = self._path / mutation.file
            file.write_text(mutation.apply(file.read_text()))
        try:
            ran = subprocess.run(
                [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests],
                cwd=self._path,
                env={**os.environ, "PYTHONPATH": str(self._path), "STOR_SOAK": ""},
                capture_output=True,
                text=True,
                timeout=RUN_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"one of {', '.join(tests)}, which has no end"
        if ran.returncode == _PASSED:
            return None
        failed = re.search(r"^(?:FAILED|ERROR) (\S+::.*?)(?: - .*)?$", ran.stdout, re.MULTILINE)
        if ran.returncode != _FAILED or failed is None:
            raise RuntimeError(f"the tests did not run:\n{ran.stdout}{ran.stderr}")
        return failed[1]


_CACHES = shutil.ignore_patterns("__pycache__", ".hypothesis")


def main(words: list[str]) -> int:
    """Try every mutation with one of the `words` in its name or its file, or all without any.

    0 when a test notices each of them.
    """
    begun = time.monotonic()
    chosen = [m for m in MUTATIONS if not words or any(w in m.name or w in m.file for w in words)]
    with tempfile.TemporaryDirectory() as path:
        trials = Trials(Path(path))
        unmutated = tuple(dict.fromkeys(test for m in chosen for test in m.tests))
        failed = trials.run(unmutated)
        if failed is not None:
            print(f"{failed} fails although nothing is changed", file=sys.stderr)
            return 1
        survivors = 0
        for mutation in chosen:
            killer = trials.run(mutation.tests, mutation)
            survivors += killer is None
            verdict = "SURVIVED" if killer is None else f"killed by {killer}"
            print(f"{mutation.name}: {verdict}", flush=True)
    seconds = time.monotonic() - begun
    print(f"{len(chosen)} mutations, {survivors} survived ({seconds:.0f} s)")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What bench writes is gone in the end."""

import os
import signal

import pytest

from bench.temporary import empty_files, temporary_directory


@pytest.fixture
def interrupts():
    """Signals that have reached bench."""
    seen = []
    before = signal.signal(signal.SIGINT, lambda number, _: seen.append(number))
    yield seen
    signal.signal(signal.SIGINT, before)


def test_a_directory_goes_and_its_parent_stays(tmp_path):
    with temporary_directory(tmp_path) as directory:
        (directory / "disk").mkdir()
        (directory / "disk" / "sample").write_bytes(b"x")
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_emptied_keep_their_names_and_nothing_else(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "sample").write_bytes(b"x")
    (tmp_path / "disk" / "dangling").symlink_to("nowhere")
    empty_files(tmp_path)
    assert (tmp_path / "disk" / "sample").read_bytes() == b""
    assert (tmp_path / "disk" / "dangling").is_symlink()


def test_after_one_of_several_directories_is_gone_signals_still_end_bench(tmp_path, interrupts):
    with temporary_directory(tmp_path) as outer:
        with temporary_directory(outer):
            pass
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupts == [signal.SIGINT]

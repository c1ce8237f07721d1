"""What bench charges a server with is all of its processes."""

import os
import signal
import subprocess
import sys

import pytest

from bench.usage import cpu_seconds, memory, tree

#: A parent that has had one child which worked, and has another which has memory.
PARENT = """
import subprocess, sys, time
work = "import time\\nwhile time.process_time() < 0.5: pass"
hold = "import sys\\nheld = b'x' * 2**25\\nprint('held', flush=True)\\nsys.stdin.read()"
subprocess.run([sys.executable, "-c", work], check=True)
child = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE)
child.wait()
"""


@pytest.fixture
def parent():
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout.readline() == b"held\n"
    yield process.pid
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


def test_children_count_also_those_that_have_ended(parent):
    assert len(list(tree(parent))) == 2
    assert cpu_seconds(parent) >= 0.5


def test_memory_is_that_of_all_and_what_they_share_is_counted_once(parent):
    found = memory(parent)
    assert 2**25 < found.proportional < found.resident

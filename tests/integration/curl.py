"""curl, as a process."""

import itertools
import subprocess

import attrs

from tests.integration.process import environment


@attrs.frozen
class Ended:
    """What a curl has done; `body` is its standard output."""

    status: int
    code: int
    body: bytes
    uploaded_bytes: int
    seconds: float
    errors: list


#: A wrong password slows down its address, and each curl is another client.
_ADDRESSES = itertools.cycle(f"127.0.1.{n}" for n in range(1, 255))


def curl(*arguments, stdin=None):
    """Run curl from an address of its own, and fail if there is none."""
    told = "%{stderr}\n%{http_code} %{size_upload} %{time_total}"
    ended = subprocess.run(
        [
            "curl",
            "-q",
            "-sS",
            "--interface",
            next(_ADDRESSES),
            "--max-time",
            "60",
            "-w",
            told,
            *map(str, arguments),
        ],
        stdin=stdin or subprocess.DEVNULL,
        env=environment(),
        capture_output=True,
        timeout=90,
        check=False,
    )
    # With `-T .` there is a progress meter beside what is asked for.
    *lines, last = ended.stderr.decode().splitlines()
    code, uploaded, seconds = last.split()
    errors = [line for line in lines if line.startswith("curl: ")]
    return Ended(ended.returncode, int(code), ended.stdout, int(uploaded), float(seconds), errors)

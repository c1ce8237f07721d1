"""The page in a real browser, on a telephone and on a desk: it is drawn, and asks for nothing."""

import re
import shutil
import struct
import subprocess
import zlib

import attrs
import pytest

from tests.integration.process import environment

QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--hide-scrollbars",
)

SIZES = {"telephone": (390, 844), "desk": (1200, 900)}


@pytest.fixture
def browse(tmp_path):
    """Visit a page with a Chromium that has never been anywhere: what it says."""
    program = shutil.which("chromium")
    assert program, "no chromium: apt install chromium"
    visits = iter(range(100))

    def visit(url, *arguments):
        return subprocess.run(
            [program, *QUIET, f"--user-data-dir={tmp_path}/profile{next(visits)}", *arguments, url],
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )

    return visit


@attrs.frozen
class Picture:
    """A PNG. `lines` is how many of its lines are not like any other, as they are packed."""

    width: int
    height: int
    lines: int

    @classmethod
    def of(cls, path):
        data = path.read_bytes()
        assert data.startswith(b"\x89PNG\r\n\x1a\n")
        width, height = struct.unpack_from(">II", data, 16)
        at, packed = 8, b""
        while at < len(data):
            length, kind = struct.unpack_from(">I4s", data, at)
            packed += data[at + 8 : at + 8 + length] if kind == b"IDAT" else b""
            at += 12 + length
        raw = zlib.decompress(packed)
        stride = len(raw) // height
        return cls(width, height, len({raw[y : y + stride] for y in range(0, len(raw), stride)}))


def test_a_blank_picture_is_known_as_one(browse, tmp_path):
    """Or the tests below could not fail."""
    browse("about:blank", "--window-size=390,844", f"--screenshot={tmp_path}/blank.png")
    assert Picture.of(tmp_path / "blank.png").lines < 5


@pytest.fixture(params=["healthy", "offline"])
def gone(request):
    """How many disks are not there."""
    return request.param == "offline"


@pytest.fixture
def stor(start, gone):
    stor = start()
    if gone:
        stor.stop()
        shutil.rmtree(stor.roots[1])
        stor.start()
    return stor


def test_it_is_drawn_with_all_disks(stor, browse, tmp_path, gone):
    html = browse(stor.url(), "--dump-dom").stdout
    shown = re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL)
    for root in stor.roots:
        assert f"<span>{root}</span>" in shown
    assert shown.count("<rect ") == 4 - gone
    assert ("All storages are available" in shown) != gone
    assert ("1 of 4 disks is not available" in shown) == gone
    assert ("not a directory" in shown) == gone

    for name, (width, height) in SIZES.items():
        path = tmp_path / f"{name}.png"
        browse(stor.url(), f"--window-size={width},{height}", f"--screenshot={path}")
        picture = Picture.of(path)
        assert (picture.width, picture.height) == (width, height)
        assert picture.lines > height / 5


def test_it_asks_for_nothing_but_itself(stor, browse):
    before = len(stor.log_so_far())
    visited = browse(stor.url(), "--dump-dom", "--enable-logging=stderr", "--v=0")
    asked = [line for line in stor.log_so_far()[before:].splitlines() if "AccessLog" in line]
    assert ["GET / 200" in line for line in asked if "GET /status" not in line] == [True]
    assert "Content Security Policy" not in visited.stderr

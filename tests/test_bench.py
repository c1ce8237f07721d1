"""What bench makes of its runs, the samples it makes, and what it leaves behind."""

import hashlib
import importlib.util
import os
import signal
import xml.etree.ElementTree as ET
from itertools import islice

import pytest

from bench.comparison import Curve, Curves, Result
from bench.machine import empty_files, temporary_directory
from bench.measure import (
    CPU,
    CPU_PER_GB,
    P99,
    PSS,
    RATE,
    SPEED,
    Done,
    Run,
    Series,
    Spread,
    at_least,
    at_most,
    percentile,
)
from bench.plot import svg
from bench.process import Failed, Memory
from bench.report import as_json, curves_table, summary, table
from bench.rooms import Profiler
from bench.samples import Bodies, ManySamples, size_name
from bench.workloads import wrk_report


def run(requests, cpu_seconds=1.0, content_bytes=0, p99_seconds=None, mib=100):
    done = Done(requests, 2.0, content_bytes, p99_seconds)
    return Run(done, cpu_seconds, Memory(2 * mib * 2**20, mib * 2**20))


def series(name, *requests, **further):
    return Series(name, [run(number, **further) for number in requests])


def result(targets=()):
    table = {
        its.name: its for its in (series("Stor", 300, 100, 200), series("nginx", 400, 400, 400))
    }
    verdicts = [target.verdict("Stor", table) for target in targets]
    return Result("GET", list(table.values()), "nginx", (RATE, P99, PSS), verdicts)


@pytest.mark.parametrize(
    ("measure", "figure"),
    [(RATE, 500), (SPEED, 2.5), (CPU, 4000), (CPU_PER_GB, 800), (P99, 3), (PSS, 100)],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_measure_has_the_unit_that_it_is_named_after(measure, figure):
    a_run = run(1000, cpu_seconds=4.0, content_bytes=5_000_000, p99_seconds=0.003)
    assert measure.of(a_run) == pytest.approx(figure)


def test_ratios_compare_the_runs_of_one_round():
    """The second round was slow for both, which makes no difference between them."""
    stor, nginx = series("Stor", 50, 5, 60), series("nginx", 100, 10, 100)
    assert stor.ratio(RATE, nginx) == Spread(0.5, 0.5, 0.6)


def test_what_was_not_measured_has_neither_spread_nor_ratio():
    loop, stor = series("loop", 1, 2), series("Stor", 1, 2, p99_seconds=0.1)
    assert loop.spread(P99) is None
    assert stor.ratio(P99, loop) is None


@pytest.mark.parametrize(
    ("target", "reached"),
    [
        (at_least(RATE, 0.5, "nginx"), True),
        (at_least(RATE, 0.51, "nginx"), False),
        (at_most(RATE, 0.5, "nginx"), True),
        (at_most(RATE, 0.49, "nginx"), False),
        (at_most(PSS, 150), True),
        (at_most(PSS, 99), False),
        (at_most(P99, 1000), False),
    ],
)
def test_a_target_is_reached_by_the_median_and_never_by_what_was_not_measured(target, reached):
    (verdict,) = result([target]).verdicts
    assert verdict.reached is reached


def test_a_table_has_a_row_for_each_subject_and_a_line_for_each_target():
    lines = table(result([at_least(RATE, 0.6, "nginx"), at_most(PSS, 150)])).splitlines()
    assert lines == [
        "GET; ratios to nginx",
        "       requests/s  min-max  ratio      min-max  p99 ms  PSS MiB",
        "Stor          100   50-150  0.500  0.250-0.750       -      100",
        "nginx         200  200-200  1.000  1.000-1.000       -      100",
        "target: requests/s >= 0.6 of nginx: 0.5 (0.25-0.75), MISSED",
        "target: PSS MiB <= 150: 100 (100-100), reached",
    ]


def test_the_summary_begins_with_what_was_missed():
    lines = summary({"get": result([at_most(PSS, 150), at_least(RATE, 0.6, "nginx")])}).splitlines()
    assert lines[0] == "1 of 2 targets reached"
    assert [line.split()[-1] for line in lines[2:]] == ["MISSED", "reached"]


def test_the_report_of_wrk_is_read():
    text = "Running 1s test\n  lots of words\n\nbench 1000 2000000 0 1500\n"
    assert wrk_report(text, 4096) == Done(1000, 2.0, 4_096_000, 0.0015)


@pytest.mark.parametrize("report", ["", "\nbench 10 2000000 1 15\n", "\nbench 0 2000000 0 0\n"])
def test_a_failed_request_leaves_no_figure(report):
    with pytest.raises(Failed):
        wrk_report(report, 1)


@pytest.mark.parametrize(("count", "found"), [(0, None), (1, 0), (99, 98), (100, 99), (1000, 990)])
def test_the_99th_percentile(count, found):
    assert percentile(list(map(float, range(count))), 0.99) == found


def curves():
    stor = {1: series("Stor", 30, 20), 16: series("Stor", 300)}
    nginx = {1: series("nginx", 3000), 16: series("nginx", 30_000)}
    return Curves("GET <hot>", "connections", str, [Curve("Stor", stor), Curve("nginx", nginx)])


def test_a_picture_has_a_line_for_each_server():
    picture = ET.fromstring(svg(curves()))
    lines = picture.findall("{http://www.w3.org/2000/svg}polyline")
    assert [len(line.attrib["points"].split()) for line in lines] == [2, 2]
    words = [text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert words[0] == "requests/s: GET <hot>"
    assert {"connections", "1", "16", "10", "100,000", "Stor", "nginx"} <= set(words)


def test_a_sweep_as_a_table():
    assert curves_table(curves()).splitlines() == [
        "requests/s: GET <hot>",
        "connections  Stor  nginx",
        "1              12   1500",
        "16            150  15000",
    ]


def test_json_has_every_run():
    picture = as_json({"cores": "2"}, {"get": result([at_most(PSS, 150)])}, {"c": curves()})
    stor, _ = picture["comparisons"]["get"]["subjects"]
    assert [a_run["done"]["requests"] for a_run in stor["runs"]] == [300, 100, 200]
    assert len(picture["sweeps"]["c"]["servers"]["Stor"][1]) == 2


def test_bodies_are_distinct_and_named_by_what_they_hold():
    bodies = list(islice(Bodies(100), 5))
    assert len({body.digest for body in bodies}) == 5
    for body in bodies:
        content = b"".join(body.parts)
        assert len(content) == body.size == 100
        assert body.digest.raw == hashlib.sha256(content).digest()


@pytest.mark.parametrize(
    ("size", "name"), [(100, "100 B"), (1536, "1536 B"), (4096, "4 KiB"), (200 * 2**20, "200 MiB")]
)
def test_a_size_is_written_as_people_write_it(size, name):
    assert size_name(size) == name


def test_many_samples_are_laid_out_as_stor_does_it_and_a_missing_one_would_be_among_them(tmp_path):
    many = ManySamples(4000)
    many.fill(tmp_path / "disk")
    files = [path for path in (tmp_path / "disk").rglob("*") if path.is_file()]
    assert len(files) == 4000
    for path in files:
        name = path.stem
        assert path.relative_to(tmp_path / "disk").parts == (
            *(name[:2], name[2:4], name[4:6]),
            f"{name}.dat",
        )
    for _ in range(50):
        missing = tmp_path / "disk" / many.missing_digest().disk_path
        assert missing.parent.is_dir()
        assert not missing.exists()


@pytest.fixture
def interrupts():
    """The signals received."""
    seen = []
    before = signal.signal(signal.SIGINT, lambda number, _: seen.append(number))
    yield seen
    signal.signal(signal.SIGINT, before)


def test_a_directory_goes_and_its_parent_stays(tmp_path):
    with temporary_directory(tmp_path) as directory:
        (directory / "disk").mkdir()
        (directory / "disk" / "sample").write_bytes(b"x")
    assert list(tmp_path.iterdir()) == []


def test_emptied_files_keep_their_names_alone(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "sample").write_bytes(b"x")
    (tmp_path / "disk" / "dangling").symlink_to("nowhere")
    empty_files(tmp_path)
    assert (tmp_path / "disk" / "sample").read_bytes() == b""
    assert (tmp_path / "disk" / "dangling").is_symlink()


def test_signals_get_through_again_once_a_directory_is_gone(tmp_path, interrupts):
    with temporary_directory(tmp_path) as outer:
        with temporary_directory(outer):
            pass
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupts == [signal.SIGINT]


def test_a_move_is_a_call_from_one_room_into_another(tmp_path):
    """The caller is the nearest room, also with the standard library in between."""
    source = "def twice(other):\n    return [other(), sorted([1, 2], key=lambda _: other())]\n"
    modules = []
    for name in ("a", "b"):
        path = tmp_path / f"{name}.py"
        path.write_text(source + "def one():\n    return 1\n")
        spec = importlib.util.spec_from_file_location(name, path)
        modules.append(importlib.util.module_from_spec(spec))
        spec.loader.exec_module(modules[-1])
    a, b = modules
    profiler = Profiler(f"{tmp_path}/")
    profiler.start()
    a.twice(b.one)
    a.twice(a.one)
    profiler.stop()
    calls = profiler.calls()
    assert calls.rooms == ["a.py", "b.py"]
    assert calls.moves == 3
    assert calls.python_calls >= 12

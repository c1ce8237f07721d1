"""What bench makes of its turns: ratios, targets, tables and pictures."""

import xml.etree.ElementTree as ET

import pytest

from bench.clients import percentile
from bench.comparison import Result
from bench.errors import Failed
from bench.get import read_report
from bench.measure import CPU, CPU_PER_GB, P99, PSS, RATE, SPEED
from bench.plot import svg
from bench.report import as_json, curves_table, summary, table
from bench.series import Series
from bench.sweep import Curve, Curves
from bench.target import at_least, at_most
from bench.turn import Spread, Turn
from bench.usage import Memory
from bench.workload import Done


def turn(requests, cpu_seconds=1.0, content_bytes=0, p99_seconds=None, mib=100):
    done = Done(requests, 2.0, content_bytes, p99_seconds)
    return Turn(done, cpu_seconds, Memory(2 * mib * 2**20, mib * 2**20))


def series(name, *requests, **further):
    return Series(name, [turn(number, **further) for number in requests])


def result(targets=()):
    table = {
        its.name: its for its in (series("Stor", 300, 100, 200), series("nginx", 400, 400, 400))
    }
    verdicts = [target.judge("Stor", table) for target in targets]
    return Result("GET", list(table.values()), "nginx", (RATE, P99, PSS), verdicts)


@pytest.mark.parametrize(
    ("measure", "figure"),
    [(RATE, 500), (SPEED, 2.5), (CPU, 4000), (CPU_PER_GB, 800), (P99, 3), (PSS, 100)],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_measure_has_the_unit_that_it_is_named_after(measure, figure):
    a_turn = turn(1000, cpu_seconds=4.0, content_bytes=5_000_000, p99_seconds=0.003)
    assert measure.of(a_turn) == pytest.approx(figure)


def test_ratios_compare_the_turns_of_one_round():
    """The second round was slow for both: that is no difference between them."""
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


def test_a_table_has_a_row_for_each_contender_and_a_line_for_each_target():
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


def test_wrk_says_what_it_has_done():
    text = "Running 1s test\n  lots of words\n\nbench 1000 2000000 0 1500\n"
    assert read_report(text, 4096) == Done(1000, 2.0, 4_096_000, 0.0015)


@pytest.mark.parametrize("report", ["", "\nbench 10 2000000 1 15\n", "\nbench 0 2000000 0 0\n"])
def test_a_failed_request_leaves_no_figure(report):
    with pytest.raises(Failed):
        read_report(report, 1)


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


def test_every_turn_is_there_for_programs():
    picture = as_json({"cores": "2"}, {"get": result([at_most(PSS, 150)])}, {"c": curves()})
    stor, _ = picture["comparisons"]["get"]["contenders"]
    assert [turn["done"]["requests"] for turn in stor["turns"]] == [300, 100, 200]
    assert len(picture["sweeps"]["c"]["servers"]["Stor"][1]) == 2

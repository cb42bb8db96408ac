import logging
import threading
from collections.abc import Iterable
from concurrent.futures import wait as wait_for

import pytest

from immich_vitals.collector import Absent, Collector, Context, Every, TimedOut, Unavailable
from immich_vitals.metrics import Metric, Sample
from immich_vitals.page import describe
from immich_vitals.runner import Runner
from support.clock import FakeClock
from support.fakes import OTHER, VALUE, FakeCollector, Gate


def values(samples: Iterable[Sample]) -> dict[str, float]:
    return {
        sample.metric.name
        + "".join(
            f",{name}={value}" for name, value in zip(sample.metric.labels, sample.labels, strict=True)
        ): sample.value
        for sample in samples
    }


def test_a_healthy_collector() -> None:
    """Its samples are there, with success, duration and the moment of its last success."""
    clock = FakeClock(1000.0)
    runner = Runner([FakeCollector(lambda ctx: [VALUE.sample(7)])], clock=clock)
    found = values(runner.scrape(5))
    assert found["fake_value"] == 7
    assert found["collector_success,collector=fake"] == 1
    assert found["collector_enabled,collector=fake"] == 1
    assert found["collector_last_success_timestamp_seconds,collector=fake"] == 1000.0
    assert found["collector_failures_total,collector=fake,reason=timeout"] == 0


@pytest.mark.parametrize(
    ("raised", "reason"),
    [(Absent("gone"), "absent"), (Unavailable("refused"), "unavailable"), (TimedOut("slow"), "timeout"),
     (ZeroDivisionError("bug"), "error")],
)  # fmt: skip
def test_a_failing_collector_gives_no_values(raised: Exception, reason: str) -> None:
    """It says success 0 and the reason; last success and values are not there."""

    def answer(ctx: Context) -> Iterable[Sample]:
        yield VALUE.sample(1)
        raise raised

    found = values(Runner([FakeCollector(answer)]).scrape(5))
    assert found["collector_success,collector=fake"] == 0
    assert found[f"collector_failures_total,collector=fake,reason={reason}"] == 1
    assert "fake_value" not in found
    assert "collector_last_success_timestamp_seconds,collector=fake" not in found


def test_what_is_known_in_spite_of_a_failure_is_shown() -> None:
    """A failure may carry samples that are true all the same."""

    def answer(ctx: Context) -> Iterable[Sample]:
        raise Unavailable("refused", known=[VALUE.sample(0)])

    found = values(Runner([FakeCollector(answer)]).scrape(5))
    assert found["fake_value"] == 0
    assert found["collector_success,collector=fake"] == 0


def test_a_remark_goes_with_the_values() -> None:
    """A collector that can answer and has something to mend is a success; people are told."""

    def answer(ctx: Context) -> Iterable[Sample]:
        ctx.remark("there is no /mnt/photos", "mount it")
        return [VALUE.sample(1)]

    runner = Runner([FakeCollector(answer)])
    found = values(runner.scrape(5))
    assert found["fake_value"] == 1
    assert found["collector_success,collector=fake"] == 1
    assert describe(runner.statuses()[0]) == ("partly", "There is no /mnt/photos. To mend it: mount it.")


def test_yesterdays_values_are_not_served() -> None:
    """After a success, a failure takes the values away at once."""
    answers = iter([[VALUE.sample(1)], None])

    def answer(ctx: Context) -> Iterable[Sample]:
        found = next(answers)
        if found is None:
            raise Unavailable("refused")
        return found

    runner = Runner([FakeCollector(answer)])
    assert "fake_value" in values(runner.scrape(5))
    assert "fake_value" not in values(runner.scrape(5))


def test_a_disabled_collector() -> None:
    """It says enabled 0 and nothing else."""
    found = values(Runner([], {"redis": ("Redis.", "not configured")}).scrape(5))
    assert {name for name in found if "redis" in name} == {"collector_enabled,collector=redis"}
    assert found["collector_enabled,collector=redis"] == 0


def test_a_collector_that_hangs_delays_nobody() -> None:
    """The scrape ends without it, the others answer, the next scrape joins its run, and then it heals."""
    gate = Gate()
    stuck = FakeCollector(gate, name="stuck", timeout=0.05)
    other = FakeCollector(lambda ctx: [OTHER.sample(2)], name="other")
    runner = Runner([stuck, other])
    for _ in range(3):
        found = values(runner.scrape(5))
        assert found["fake_other"] == 2
        assert found["collector_success,collector=stuck"] == 0
        assert found["collector_failures_total,collector=stuck,reason=timeout"] == 1
        assert "fake_value" not in found
    assert stuck.runs == 1
    run = runner._watched[0].current
    assert run is not None
    gate.open()
    run.future.result(10)
    stuck._answer = lambda ctx: [VALUE.sample(5)]
    found = values(runner.scrape(5))
    assert found["fake_value"] == 5
    assert found["collector_success,collector=stuck"] == 1


def test_a_scrape_in_a_hurry_spoils_nothing() -> None:
    """One that cannot wait goes without the values; the run it met is no failure, and serves those with more time."""
    gate = Gate()
    runner = Runner([FakeCollector(gate)])
    patient = runner.begin(10)
    hasty = values(runner.scrape(0.01))
    assert hasty["collector_success,collector=fake"] == 0
    assert "fake_value" not in hasty
    gate.open()
    patient.runs[0].future.result(10)
    found = values(runner.finish(patient))
    assert found["fake_value"] == 1
    assert found["collector_failures_total,collector=fake,reason=timeout"] == 0


def test_a_failure_that_began_before_is_not_this_scrapes() -> None:
    """A scrape that joins a run which an earlier one left behind, and sees it fail, asks anew in the time it has."""
    gate = Gate()

    def answer(ctx: Context) -> Iterable[Sample]:
        if collector.runs > 1:
            return [VALUE.sample(5)]
        gate(ctx)
        raise Unavailable("it was broken then")

    collector = FakeCollector(answer)
    runner = Runner([collector])
    assert values(runner.scrape(0.01))["collector_success,collector=fake"] == 0
    joined = runner.begin(10)
    gate.open()
    while pending := joined.pending()[0]:
        wait_for(pending)
    found = values(runner.finish(joined))
    assert found["fake_value"] == 5
    assert found["collector_success,collector=fake"] == 1
    assert found["collector_failures_total,collector=fake,reason=unavailable"] == 1
    assert collector.runs == 2


def test_a_late_result_is_not_served() -> None:
    """A run that ended after its scrape was answered is neither shown nor counted as a recovery."""
    gate = Gate()
    collector = FakeCollector(gate, timeout=0.05)
    runner = Runner([collector])
    runner.scrape(5)
    run = runner._watched[0].current
    assert run is not None
    gate.open()
    run.future.result(10)
    assert runner.statuses()[0].outcome is not None
    assert runner.statuses()[0].outcome.reason == "timeout"


def test_concurrent_scrapes_share_a_run() -> None:
    """Two Prometheus servers that scrape at once cost one run, and both get its values."""
    gate = Gate()
    collector = FakeCollector(gate)
    runner = Runner([collector])
    results: list[dict[str, float]] = []
    threads = [threading.Thread(target=lambda: results.append(values(runner.scrape(10)))) for _ in range(5)]
    for thread in threads:
        thread.start()
    assert gate.entered.wait(10)
    gate.open()
    for thread in threads:
        thread.join(10)
    assert [found["fake_value"] for found in results] == [1.0] * 5
    assert collector.runs < 5


def test_the_deadline_of_the_scrape_reaches_the_collector() -> None:
    """A collector gets what the scrape allows, less a moment for the way back, and never more than its own limit; at
    least a second, since others with more time may join the run."""
    seen: list[float] = []

    def answer(ctx: Context) -> Iterable[Sample]:
        seen.append(ctx.deadline.remaining())
        return []

    runner = Runner([FakeCollector(answer, timeout=3.0)], clock=FakeClock(64.0))
    runner.scrape(9.0)
    runner.scrape(2.0)
    runner.scrape(0.1)
    assert seen == pytest.approx([3.0, 1.75, 1.0])


def test_a_timer_serves_its_last_result() -> None:
    """A collector on a timer runs when due, and scrapes in between run nothing."""
    clock = FakeClock()
    collector = FakeCollector(lambda ctx: [VALUE.sample(collector.runs)], trigger=Every(300))
    runner = Runner([collector], clock=clock)
    assert not runner.ready
    assert values(runner.scrape(5))["fake_value"] == 1  # the first scrape waits for the first run
    assert runner.ready
    for _ in range(3):
        clock.advance(60)
        assert values(runner.scrape(5))["fake_value"] == 1
    assert collector.runs == 1
    clock.advance(150)
    runner.run_due()
    run = runner._watched[0].current
    assert run is not None
    run.future.result(10)
    assert values(runner.scrape(5))["fake_value"] == 2


def test_a_timer_that_is_not_awaited_answers_who_asks_for_everything() -> None:
    """No scrape waits for it, but `check` does, which asks once."""
    collector = FakeCollector(lambda ctx: [VALUE.sample(1)], trigger=Every(300, awaited=False))
    runner = Runner([collector])
    assert "fake_value" not in values(runner.scrape(5))
    assert collector.runs == 0
    assert values(runner.scrape(5, everything=True))["fake_value"] == 1


def test_a_short_interval_is_kept_however_long_a_run_may_take() -> None:
    """The next look at a timer comes no later than its next run can be due."""
    collector = FakeCollector(lambda ctx: [VALUE.sample(1)], trigger=Every(2), timeout=120.0)
    assert Runner([collector], clock=FakeClock()).run_due() <= 2


def test_a_timer_that_fails_serves_nothing_and_tries_again_soon() -> None:
    """After a failed run its old values are gone, and it runs again long before its interval is over."""
    clock = FakeClock()
    answers: list[bool] = [True, False, True]

    def answer(ctx: Context) -> Iterable[Sample]:
        if answers.pop(0):
            return [VALUE.sample(1)]
        raise Unavailable("refused")

    runner = Runner([FakeCollector(answer, trigger=Every(300))], clock=clock)
    runner.scrape(5)

    def run_after(seconds: float) -> dict[str, float]:
        clock.advance(seconds)
        runner.run_due()
        run = runner._watched[0].current
        assert run is not None
        run.future.result(10)
        return values(runner.scrape(5))

    assert "fake_value" not in run_after(301)
    assert run_after(31)["fake_value"] == 1


@pytest.mark.parametrize(("asked", "pause"), [(True, 600), (False, 30)])
def test_a_run_that_asked_nothing_is_tried_again_soon(asked: bool, pause: float) -> None:
    """However long it waited for a server that was away; a run whose work took long and failed waits as a good one."""
    clock = FakeClock()
    runs: list[float] = []

    def answer(ctx: Context) -> Iterable[Sample]:
        runs.append(clock.monotonic())
        clock.advance(12)
        failure = Unavailable("refused")
        failure.asked = asked
        raise failure

    runner = Runner([FakeCollector(answer, trigger=Every(300), timeout=120)], clock=clock)
    runner.scrape(50)
    while len(runs) < 2:
        clock.advance(1)
        runner.run_due()
        run = runner._watched[0].current
        assert run is not None
        run.future.result(10)
    assert runs[1] - runs[0] - 12 == pytest.approx(pause, abs=1)


def test_the_interval_stretches() -> None:
    """A run of 60 s on a timer of 5 min is followed by the next after 50 min, so that it uses 2 % at most."""
    assert Every(300).interval(60.0) == 3000
    assert Every(300).interval(1.0) == 300
    assert Every(15, stretch=False).interval(60.0) == 15


def test_a_result_that_is_too_old_is_not_served() -> None:
    """When a timer's runs hang, its last values go after three intervals, and it counts as failing."""
    clock = FakeClock()
    runner = Runner([FakeCollector(lambda ctx: [VALUE.sample(1)], trigger=Every(300), timeout=10)], clock=clock)
    runner.scrape(5)
    clock.advance(905)
    assert "fake_value" in values(runner.scrape(5))
    clock.advance(10)
    found = values(runner.scrape(5))
    assert "fake_value" not in found
    assert found["collector_success,collector=fake"] == 0


@pytest.mark.parametrize("seconds", [86400, -86400])
def test_a_clock_that_is_set_makes_no_result_old(seconds: float) -> None:
    """The last result of a timer is served on, and goes at its time, whatever happens to the time of day."""
    clock = FakeClock()
    runner = Runner([FakeCollector(lambda ctx: [VALUE.sample(1)], trigger=Every(300), timeout=10)], clock=clock)
    runner.scrape(5)
    clock.set(seconds)
    assert "fake_value" in values(runner.scrape(5))
    clock.advance(915)
    assert "fake_value" not in values(runner.scrape(5))


def test_a_slow_first_count_is_neither_success_nor_failure() -> None:
    """While a timer's first run is under way the scrape ends in time and says nothing about it."""
    gate = Gate()
    runner = Runner([FakeCollector(gate, trigger=Every(300), timeout=100)])
    found = values(runner.scrape(0.05))
    assert "collector_success,collector=fake" not in found
    assert found["collector_enabled,collector=fake"] == 1
    gate.open()


@pytest.mark.parametrize(
    "samples",
    [
        [VALUE.sample(1), VALUE.sample(2)],
        [Metric("undeclared", "Not in the collector's list.").sample(1)],
    ],
)
def test_a_collector_that_breaks_its_contract_is_a_bug(samples: list[Sample]) -> None:
    """A series given twice, or a metric that is not declared, is reported and spoils nobody else's values."""
    other = FakeCollector(lambda ctx: [OTHER.sample(2)], name="other")
    found = values(Runner([FakeCollector(lambda ctx: samples), other]).scrape(5))
    assert found["collector_failures_total,collector=fake,reason=error"] == 1
    assert found["fake_other"] == 2


def test_one_line_when_it_breaks_and_one_when_it_heals(caplog: pytest.LogCaptureFixture) -> None:
    """However long a failure lasts, the log has one line for its begin and one for its end."""
    broken = [True]

    def answer(ctx: Context) -> Iterable[Sample]:
        if broken[0]:
            raise Unavailable("redis refused the connection", mend="start redis")
        return []

    runner = Runner([FakeCollector(answer)])
    with caplog.at_level(logging.DEBUG):
        for _ in range(5):
            runner.scrape(5)
        broken[0] = False
        for _ in range(5):
            runner.scrape(5)
    assert [record.message for record in caplog.records] == ["collector failing", "collector recovered"]


def test_an_event_stream_is_followed_again_after_it_ends() -> None:
    """`follow` is called again when it returns or fails, until the exporter stops."""
    calls: list[int] = []
    third = threading.Event()

    class Follower(FakeCollector):
        def follow(self, stop: object) -> None:
            calls.append(1)
            if len(calls) == 3:
                third.set()
                raise KeyError("a bug")
            if len(calls) == 2:
                raise Unavailable("the daemon is gone")

    runner = Runner([Follower(lambda ctx: [])])
    runner._stop.wait = lambda timeout=None: runner._stop.is_set() or third.wait(0)  # type: ignore[method-assign]
    runner.start()
    assert third.wait(10)
    runner.stop()


def test_stop_closes_every_collector() -> None:
    """One that cannot be closed does not keep the others open."""
    closed: list[str] = []

    class Closing(FakeCollector):
        def close(self) -> None:
            closed.append(self.name)
            raise OSError("already gone")

    collectors: list[Collector] = [Closing(lambda ctx: [], name="a"), Closing(lambda ctx: [], name="b")]
    Runner(collectors).stop()
    assert closed == ["a", "b"]

"""Runs the collectors: the only place that times them, catches what they raise and logs it.

A scrape starts or joins one run of every on-scrape collector and waits for all of them together; a collector on a
timer is run by `run_due` and served from its last result. See docs/architecture.md for the whole model.
"""

import logging
import platform
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, replace

from immich_vitals import __version__
from immich_vitals.collector import (
    Clock,
    Collector,
    CollectorFailure,
    Context,
    Deadline,
    Every,
    Remark,
    SystemClock,
)
from immich_vitals.flight import Flight, start_thread
from immich_vitals.metrics import Metric, Sample

log = logging.getLogger(__name__)

BUILD = Metric("build_info", "The exporter's own version.", ("version", "python"))
ENABLED = Metric("collector_enabled", "1 when something is configured for the collector.", ("collector",))
SUCCESS = Metric(
    "collector_success",
    "1 when the collector's last run answered in time; its values are only there while it is 1.",
    ("collector",),
)
DURATION = Metric("collector_duration_seconds", "How long the collector's last finished run took.", ("collector",))
LAST_SUCCESS = Metric(
    "collector_last_success_timestamp_seconds",
    "When the collector last succeeded: the age of the values it shows.",
    ("collector",),
)
FAILURES = Metric(
    "collector_failures_total",
    "Runs that failed, by reason: unavailable (refused) and timeout; absent (not there) and error (a bug) once they"
    " happen.",
    ("collector", "reason"),
)
SCRAPE_DEADLINE = Metric("scrape_deadline_seconds", "How long this scrape was willing to wait for collectors.")
SELF_METRICS = (BUILD, ENABLED, SUCCESS, DURATION, LAST_SUCCESS, FAILURES, SCRAPE_DEADLINE)

# A source gives up at the collector's deadline and says what it waited for; the runner, which can only say
# "late", gives it this much longer to do so.
GRACE = 0.25
# A scrape in a great hurry does not wait, but must not start a run that fails for those who join it with more time.
SHORTEST_RUN = 1.0
# Those that come and go. What is not there and what is a bug fails run after run, if at all.
REASONS_FROM_START = ("unavailable", "timeout")
RETRY_SECONDS = 30.0  # a failed timer run is tried again after this, or after its interval if that is shorter
FOLLOW_PAUSE = 2.0  # between two attempts to follow an event stream; doubles up to the next
FOLLOW_PAUSE_LONGEST = 60.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one run of a collector ended. `reason` is None for a success, else one of `collector.REASONS`."""

    reason: str | None
    samples: tuple[Sample, ...]
    message: str
    mend: str
    duration: float
    finished: float  # wall-clock, seconds since the epoch
    remarks: tuple[Remark, ...] = ()
    asked: bool = True  # see CollectorFailure

    @property
    def ok(self) -> bool:
        return self.reason is None


_MISSED = Outcome("timeout", (), "did not answer in time", "", 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Status:
    """What a person sees of one collector."""

    name: str
    about: str
    enabled: bool
    outcome: Outcome | None
    disabled_because: str
    last_success: float | None
    interval: float | None


@dataclass(frozen=True, slots=True)
class _Run:
    """One flight of one collector, with the moment at which it is called late, and the one at which the scrape that
    started it stops waiting."""

    collector: "_Watched"
    future: Future[Outcome]
    began: float
    late_at: float
    left_at: float


@dataclass(slots=True)
class Scrape:
    """A scrape under way: wait as `pending` says until it says nothing, then hand it to `Runner.finish`."""

    runs: list[_Run]
    deadline: Deadline
    allowed: float
    began: float
    launch: Callable[["_Watched", Deadline], _Run]

    def pending(self) -> tuple[list[Future[Outcome]], float]:
        """The runs worth waiting for, and for how many seconds before asking again; no runs: stop waiting.

        A run that is late already, such as one that an earlier scrape left hanging, is not waited for. One that an
        earlier scrape left behind and that has failed since says nothing of now: it is run again.
        """
        now = self.deadline.clock.monotonic()
        if now < self.deadline.at:
            self.runs = [
                self.launch(run.collector, self.deadline) if run.left_at <= self.began and _failed(run.future) else run
                for run in self.runs
            ]
        runs = [run for run in self.runs if not run.future.done() and run.late_at > now]
        if not runs or now >= self.deadline.at:
            return [], 0.0
        return [run.future for run in runs], min(self.deadline.at, *(run.late_at for run in runs)) - now

    def names(self, futures: Iterable[Future[Outcome]]) -> set[str]:
        """The collectors whose runs these are."""
        wanted = set(futures)
        return {run.collector.collector.name for run in self.runs if run.future in wanted}


def _failed(future: Future[Outcome]) -> bool:
    return future.done() and not future.result().ok


class _Watched:
    """One enabled collector, its flight, and what became of its runs."""

    def __init__(self, collector: Collector) -> None:
        self.collector = collector
        self.flight: Flight[Outcome] = Flight(f"collector-{collector.name}")
        self.current: _Run | None = None
        self.counted_late: Future[Outcome] | None = None
        self.shown: Outcome | None = None
        self.shown_at = 0.0  # monotonic
        self.last_success: float | None = None
        self.failures: Counter[str] = Counter()
        self.due = 0.0  # monotonic; only for collectors on a timer
        self.broken_since: float | None = None

    @property
    def on_timer(self) -> bool:
        return isinstance(self.collector.trigger, Every)

    @property
    def awaited(self) -> bool:
        """On a timer, and without a first result that scrapes wait for."""
        trigger = self.collector.trigger
        return isinstance(trigger, Every) and trigger.awaited and self.shown is None


class Runner:
    """All collectors of one exporter.

    `collectors` are the enabled ones; `disabled` maps the name of each other to (its class's docstring, why).
    """

    def __init__(
        self,
        collectors: Sequence[Collector],
        disabled: dict[str, tuple[str, str]] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._clock = clock or SystemClock()
        self._watched = [_Watched(collector) for collector in collectors]
        self._disabled = disabled or {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self.metrics: tuple[Metric, ...] = SELF_METRICS + tuple(
            metric for watched in self._watched for metric in watched.collector.metrics
        )

    # -- scraping

    def begin(self, allowed: float, *, everything: bool = False) -> Scrape:
        """Start or join the runs of one scrape that may take `allowed` seconds.

        With `everything` also of those on a timer that no scrape waits for: for a person who asks once.
        """
        began = self._clock.monotonic()
        deadline = Deadline.after(allowed, self._clock)
        runs = [
            self._launch(watched, deadline)
            for watched in self._watched
            if everything or not watched.on_timer or watched.awaited
        ]
        return Scrape(runs, deadline, allowed, began, self._launch)

    def finish(self, scrape: Scrape) -> list[Sample]:
        """The samples of a scrape: of the runs that have ended, and of the timers' last results."""
        now = self._clock.monotonic()
        for run in scrape.runs:
            if not run.future.done() and not run.collector.on_timer and now >= run.late_at:
                self._late(run)
        samples = [
            BUILD.sample(1, version=__version__, python=platform.python_version()),
            SCRAPE_DEADLINE.sample(scrape.allowed),
        ]
        done = {run.collector: run.future for run in scrape.runs}
        for watched in self._watched:
            outcome = self._current_outcome(watched)
            if not watched.on_timer:
                future = done[watched]
                # Not there in time, or only for a scrape in a hurry: either way this one has nothing to show.
                outcome = future.result() if future.done() else _MISSED
            samples.extend(self._samples_of(watched, outcome))
        samples.extend(ENABLED.sample(0, collector=name) for name in self._disabled)
        return samples

    def scrape(self, allowed: float, *, everything: bool = False) -> list[Sample]:
        """One whole scrape in the calling thread; `everything` as for `begin`."""
        scrape = self.begin(allowed, everything=everything)
        while (pending := scrape.pending())[0]:
            wait_for(pending[0], timeout=pending[1])
        return self.finish(scrape)

    def statuses(self) -> list[Status]:
        """Every collector's state, enabled or not, in words."""
        found = [
            Status(
                name=watched.collector.name,
                about=_first_line(watched.collector.__doc__),
                enabled=True,
                outcome=self._current_outcome(watched),
                disabled_because="",
                last_success=watched.last_success,
                interval=self._interval(watched),
            )
            for watched in self._watched
        ]
        found.extend(
            Status(name, _first_line(about), False, None, why, None, None)
            for name, (about, why) in self._disabled.items()
        )
        return found

    @property
    def ready(self) -> bool:
        """True once every collector on a timer has ended, or overrun, its first run."""
        return not any(watched.awaited for watched in self._watched)

    # -- timers and event streams

    def start(self) -> None:
        """Run the timers and follow the event streams, in threads of their own, until `stop`."""
        if any(watched.on_timer for watched in self._watched):
            start_thread(self._tick_for_ever, "timers")
        for watched in self._watched:
            if type(watched.collector).follow is not Collector.follow:
                start_thread(lambda collector=watched.collector: self._follow_for_ever(collector), "follow")  # type: ignore[misc]

    def stop(self) -> None:
        """End the timers and streams and close every collector; waits for none of them."""
        self._stop.set()
        for watched in self._watched:
            try:
                watched.collector.close()
            except Exception:
                log.exception("collector did not close", extra={"collector": watched.collector.name})

    def run_due(self) -> float:
        """Start each timer run that is due, mark those that overran; return seconds until the next look."""
        now = self._clock.monotonic()
        wait = 60.0
        for watched in self._watched:
            interval = self._interval(watched)
            if interval is None:
                continue
            run = watched.current
            if run is not None and not run.future.done():
                if now >= run.late_at:
                    self._late(run)
                # A run that ends early is due again before it could have been late.
                wait = min(wait, run.late_at - now if now < run.late_at else RETRY_SECONDS, interval, RETRY_SECONDS)
            elif now >= watched.due:
                launched = self._launch(watched, None)
                wait = min(wait, launched.late_at - now, interval, RETRY_SECONDS)
            else:
                wait = min(wait, watched.due - now)
        return max(0.05, wait)

    def _tick_for_ever(self) -> None:
        while not self._stop.wait(self.run_due()):
            pass

    def _follow_for_ever(self, collector: Collector) -> None:
        pause = FOLLOW_PAUSE
        broken = False
        while not self._stop.is_set():
            began = self._clock.monotonic()
            try:
                collector.follow(self._stop.is_set)
                problem = "the stream ended"
            except CollectorFailure as failure:
                problem = failure.message
            except Exception:
                log.exception("event stream broke on a bug", extra={"collector": collector.name})
                problem = "an unexpected error"
            if self._stop.is_set():
                return
            if self._clock.monotonic() - began > FOLLOW_PAUSE_LONGEST:
                pause, broken = FOLLOW_PAUSE, False
            if not broken:
                log.warning("event stream lost, reconnecting", extra={"collector": collector.name, "detail": problem})
            broken = True
            self._stop.wait(pause)
            pause = min(2 * pause, FOLLOW_PAUSE_LONGEST)

    # -- one run

    def _launch(self, watched: _Watched, scrape: Deadline | None) -> _Run:
        """Start or join the collector's flight; `scrape` shortens the deadline of a run that it starts."""
        now = self._clock.monotonic()
        at = now + watched.collector.timeout
        if scrape is not None and not watched.on_timer:
            own = scrape.at - min(GRACE, scrape.remaining() / 4)
            at = min(at, max(own, now + SHORTEST_RUN))
        context = Context(Deadline(at, self._clock), self._clock)
        with self._lock:
            future = watched.flight.join_or_start(lambda: self._run(watched, context))
            run = watched.current
            if run is None or run.future is not future:
                late_at = at + GRACE
                run = _Run(watched, future, now, late_at, min(late_at, scrape.at) if scrape else late_at)
                watched.current = run
        return run

    def _run(self, watched: _Watched, context: Context) -> Outcome:
        collector = watched.collector
        began = self._clock.monotonic()
        reason: str | None = None
        message = mend = ""
        asked = True
        try:
            samples = _checked(collector, collector.collect(context))
        except CollectorFailure as failure:
            reason, samples, message, mend = failure.reason, failure.known, failure.message, failure.mend
            asked = failure.asked
        except Exception as error:
            reason, samples, message = "error", (), f"{type(error).__name__} in the collector"
            mend = "this is a bug in immich-vitals: please report it with the traceback from the log"
            if watched.broken_since is None:
                log.exception("collector broke on a bug", extra={"collector": collector.name})
        duration = self._clock.monotonic() - began
        outcome = Outcome(reason, samples, message, mend, duration, self._clock.time(), tuple(context.remarks), asked)
        self._record(watched, outcome, at_end=True)
        return outcome

    def _late(self, run: _Run) -> None:
        """Note that a run has not answered in time; each run is counted once, however many scrapes meet it."""
        watched = run.collector
        with self._lock:
            if watched.counted_late is run.future or run.future.done():
                return
            watched.counted_late = run.future
        waited = self._clock.monotonic() - run.began
        late = Outcome(
            "timeout",
            (),
            f"did not answer within {waited:.1f} s",
            "what it reads from hangs; the log line of the service itself, or a second try by hand, says why",
            waited,
            self._clock.time(),
        )
        self._record(watched, late)

    def _record(self, watched: _Watched, outcome: Outcome, *, at_end: bool = False) -> None:
        """Make `outcome` the one that is shown. `at_end`: of a run that ended, not of one found late."""
        name = watched.collector.name
        with self._lock:
            if at_end and not watched.on_timer and watched.current and watched.counted_late is watched.current.future:
                return  # its scrape has been answered without it: too late to be as fresh as a scrape promises
            watched.shown, watched.shown_at = outcome, self._clock.monotonic()
            trigger = watched.collector.trigger
            if isinstance(trigger, Every):
                pause = trigger.interval(outcome.duration)
                if not outcome.ok:
                    retry = Every(min(RETRY_SECONDS, trigger.seconds), trigger.stretch and outcome.asked)
                    pause = min(pause, retry.interval(outcome.duration))
                watched.due = self._clock.monotonic() + pause
            broken_since = watched.broken_since
            if outcome.ok:
                watched.last_success = outcome.finished
                watched.broken_since = None
            else:
                watched.failures[outcome.reason or "error"] += 1
                watched.broken_since = broken_since or outcome.finished
        if outcome.ok and broken_since is not None:
            after = round(outcome.finished - broken_since)
            log.info("collector recovered", extra={"collector": name, "after_seconds": after})
        elif not outcome.ok and broken_since is None and outcome.reason != "error":
            log.warning(
                "collector failing",
                extra={
                    "collector": name,
                    "reason": outcome.reason,
                    "detail": outcome.message,
                    "mend": outcome.mend,
                },
            )

    # -- what is shown

    def _samples_of(self, watched: _Watched, outcome: Outcome | None) -> Iterable[Sample]:
        name = watched.collector.name
        yield ENABLED.sample(1, collector=name)
        for reason in dict.fromkeys((*REASONS_FROM_START, *watched.failures)):
            yield FAILURES.sample(watched.failures[reason], collector=name, reason=reason)
        if watched.last_success is not None:
            yield LAST_SUCCESS.sample(watched.last_success, collector=name)
        if watched.shown is not None:
            yield DURATION.sample(watched.shown.duration, collector=name)
        if outcome is None:
            return  # a timer's first run is still under way: neither a success nor a failure
        yield SUCCESS.sample(1 if outcome.ok else 0, collector=name)
        yield from outcome.samples

    def _current_outcome(self, watched: _Watched) -> Outcome | None:
        """The outcome that is true now: a timer's result that has grown too old counts as a time-out."""
        outcome = watched.shown
        interval = self._interval(watched)
        if outcome is None or interval is None or not outcome.ok:
            return outcome
        age = self._clock.monotonic() - watched.shown_at  # the time of day may be set meanwhile
        if age <= 3 * interval + watched.collector.timeout:
            return outcome
        return replace(outcome, reason="timeout", samples=(), message=f"the last result is {age:.0f} s old")

    def _interval(self, watched: _Watched) -> float | None:
        trigger = watched.collector.trigger
        if not isinstance(trigger, Every):
            return None
        return trigger.interval(watched.shown.duration if watched.shown else 0.0)


def _checked(collector: Collector, samples: Iterable[Sample]) -> tuple[Sample, ...]:
    """The samples, each of a declared metric and no series twice; anything else is a bug in the collector."""
    declared = set(collector.metrics)
    seen: set[tuple[str, tuple[str, ...]]] = set()
    checked = tuple(samples)
    for sample in checked:
        series = (sample.metric.name, sample.labels)
        if sample.metric not in declared:
            raise ValueError(f"{collector.name} does not declare {sample.metric.name}")
        if series in seen:
            raise ValueError(f"{collector.name} gives {sample.metric.name}{sample.labels} twice")
        seen.add(series)
    return checked


def _first_line(text: str | None) -> str:
    return (text or "").strip().split("\n", 1)[0]

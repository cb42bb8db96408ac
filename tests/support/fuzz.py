"""How long properties are tried, and what several of them are made of.

In the suite each is tried a few times, the same each time. `FUZZ=20000 pytest tests/fuzz` tries each so often, with
other values at each run; what it finds goes into the test as an `@example`, beside what mends it.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from immich_vitals.collector import Collector, CollectorFailure, Context, Deadline, SystemClock
from immich_vitals.config import Config
from immich_vitals.metrics import Sample
from immich_vitals.runner import _checked
from immich_vitals.server import exposition

T = TypeVar("T")
_OFTEN = int(os.environ.get("FUZZ", "0"))

fuzzed = settings(
    max_examples=_OFTEN or 30,
    derandomize=not _OFTEN,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
seldom = settings(fuzzed, max_examples=_OFTEN // 20 or 5)  # for what starts something anew each time

NUMBERS = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from((0, -1, 2**31, 2**63, 2**64, -(2**63), 10**30, 10**400, float("nan"), float("inf"), 5e-324)),
)
WORDS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ("", "0", "-1", "nan", "inf", "1e999", "\0", "\n", '"', "\\", "é", "\ud800", "x" * 5000, "9" * 5000, "²", "٣",
         "0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999999-23:59", "null", "__name__", "{}", "../..")
    ),
)  # fmt: skip
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, WORDS)
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4), max_leaves=12
)


def like(form: object) -> st.SearchStrategy[object]:
    """JSON of nearly this form: at any place there may be something else, nothing, more or less of the same."""
    if isinstance(form, dict):
        entries = {key: like(value) for key, value in form.items()}
        whole: st.SearchStrategy[object] = st.fixed_dictionaries({}, optional=entries) | st.fixed_dictionaries(entries)
    elif isinstance(form, list):
        whole = st.lists(st.one_of([like(each) for each in form]) if form else JSON, max_size=4)
    else:
        whole = st.just(form)
    return st.one_of(whole, whole, whole, JSON)


def as_json(raw: object) -> object:
    """The value as it comes out of JSON; raises `ValueError` for what cannot be said in it."""
    return json.loads(json.dumps(raw))


def told(ask: Callable[[], T]) -> T | None:
    """The answer, or None for a failure of the kinds that a source may raise. Its words name what to do."""
    try:
        return ask()
    except CollectorFailure as failure:
        assert failure.message
        assert failure.mend or failure.reason == "timeout"
        return None


def collected(collector: Collector, seconds: float = 10.0) -> tuple[Sample, ...] | None:
    """What the runner would show, or None where the collector fails as it may; anything else is a bug."""
    context = Context(Deadline.after(seconds), SystemClock())
    return told(lambda: shown(collector, collector.collect(context)))


def all_collected(config: Config, *kinds: type[Collector]) -> None:
    """The same of new collectors of these kinds, each of which the settings switch on."""
    for kind in kinds:
        collector = kind.from_config(config)
        assert collector is not None
        try:
            collected(collector)
        finally:
            collector.close()


def shown(collector: Collector | type[Collector], samples: Iterable[Sample]) -> tuple[Sample, ...]:
    """The samples, each declared and none twice, as a scraper reads them: no value and no label changes on the way."""
    found = _checked(collector, samples)  # type: ignore[arg-type]
    text = exposition(collector.metrics, found, "text/plain")[0].decode()
    read = {
        (each.name, *sorted(each.labels.items())): each.value
        for family in text_string_to_metric_families(text)
        for each in family.samples
        if each.name.startswith("immich_vitals_")
    }
    for sample in found:
        labels: Mapping[str, str] = dict(zip(sample.metric.labels, sample.labels, strict=True))
        value = read.pop((sample.metric.full_name, *sorted(labels.items())))
        assert value == sample.value or value != value
    assert not read
    return found

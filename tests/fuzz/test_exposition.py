"""Whatever a label says, a scraper reads it as it is."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import httpx
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from immich_vitals.collectors import COLLECTORS
from immich_vitals.metrics import Metric, Sample
from immich_vitals.page import render
from immich_vitals.server import exposition
from support.exporter import Exporter
from support.fuzz import WORDS, fuzzed
from support.golden import ROOT

GAUGE = Metric("fuzz_value", "Any.", ("one", "other"))
COUNTER = Metric("fuzz_total", "Any.", ("one", "other"))
FORMATS = {
    "text/plain;version=0.0.4": parse_text,
    "text/plain;version=1.0.0;escaping=allow-utf-8": parse_text,
    "application/openmetrics-text;version=1.0.0": parse_openmetrics,
}
LABELS = st.one_of(WORDS, st.text())


@fuzzed
@given(
    st.lists(st.tuples(LABELS, LABELS), max_size=5, unique=True),
    st.floats(allow_nan=False),
    st.sampled_from(list(FORMATS)),
)
@example([("\ud800", "\r\n"), ('"\\', "\\n")], 1.0, "text/plain;version=0.0.4")
@example([("\x85", "\u2028")], 1.0, "application/openmetrics-text;version=1.0.0")
def test_any_label_survives(labels: list[tuple[str, str]], value: float, accept: str) -> None:
    """Names of containers and files may be any text, also bytes that are no text, which are shown as `\\udcfc`."""
    samples = [metric.sample(abs(value), one=a, other=b) for metric in (GAUGE, COUNTER) for a, b in labels]
    body, kind = exposition((GAUGE, COUNTER), samples, accept)
    assert kind.split(";")[0] == accept.split(";")[0]
    read = [
        (each.name, each.labels["one"], each.labels["other"])
        for family in FORMATS[accept](body.decode())
        for each in family.samples
        if each.name.startswith(("immich_vitals_fuzz_value", "immich_vitals_fuzz_total"))
    ]
    assert read == [(each.metric.full_name, *map(_said, each.labels)) for each in samples]


def _said(label: str) -> str:
    return label.encode("utf-8", "backslashreplace").decode()


def _healthy() -> list[Sample]:
    """What every collector says of a healthy Immich."""
    metrics = {metric.full_name: metric for collector in COLLECTORS for metric in collector.metrics}
    texts = [file.read_text(encoding="utf-8") for file in sorted(ROOT.glob("*/healthy/expected.prom"))]
    return [
        metrics[each.name].sample(each.value, **each.labels)
        for text in texts
        for family in parse_text(text)
        for each in family.samples
    ]


HEALTHY = _healthy()
OPEN = {"container", "image", "path", "version"}  # labels whose words are other people's


@fuzzed
@given(st.data())
def test_the_page_shows_any_value(data: st.DataObject) -> None:
    """The landing page takes any number, of clocks far off too, and no word of another program becomes a part of it."""
    samples = []
    for each in HEALTHY:
        if each.metric.name.endswith(("_timestamp_seconds", "_bytes")) and data.draw(st.booleans()):
            each = replace(each, value=float(data.draw(st.integers(-(2**70), 2**70))))
        if OPEN.intersection(each.metric.labels) and data.draw(st.booleans()):
            word = "<script>" + data.draw(LABELS)
            labels = zip(each.metric.labels, each.labels, strict=True)
            each = each.metric.sample(each.value, **{name: word if name in OPEN else old for name, old in labels})
        samples.append(each)
    page = render([], samples, "/metrics")
    assert page.encode()
    assert "<script>" not in page


def test_a_path_that_is_no_text(tmp_path: Path) -> None:
    """A folder whose name is in an old encoding is watched, and shown with what can be shown of its name."""
    folder = os.fsdecode(bytes(tmp_path) + b"/f\xfcr Fotos")
    Path(folder).mkdir()
    with Exporter({"UPLOAD_LOCATION": folder, "IMMICH_VITALS_DISABLE": "host"}) as running:
        metrics, page = (httpx.get(running.url(path)) for path in ("/metrics", "/"))
        said = running.stop()
    assert (metrics.status_code, page.status_code) == (200, 200)
    assert "/f\\\\udcfcr Fotos" in metrics.text
    assert "Traceback" not in said


def test_check_with_a_path_that_is_no_text(tmp_path: Path) -> None:
    gone = os.fsdecode(bytes(tmp_path) + b"/f\xfcr Fotos")
    done = subprocess.run(
        [sys.executable, "-m", "immich_vitals", "check"],
        env={"PATH": os.environ["PATH"], "PYTHONIOENCODING": "utf-8:strict", "UPLOAD_LOCATION": gone},
        capture_output=True,
    )  # fmt: skip
    assert b"f\\udcfcr Fotos" in done.stdout
    assert b"Traceback" not in done.stderr

import pytest
from prometheus_client.parser import text_string_to_metric_families

from immich_vitals.metrics import Metric
from support.golden import exposition

JOBS = Metric("queue_jobs", "Jobs.", ("queue", "state"))
DONE = Metric("queue_done_total", "Done.", ("queue",))


@pytest.mark.parametrize(
    "labels", [{}, {"queue": "a"}, {"queue": "a", "stat": "b"}, {"queue": "a", "state": "b", "x": "c"}]
)
def test_a_wrong_label_fails_at_once(labels: dict[str, str]) -> None:
    """A sample takes exactly the declared labels, so that a typo cannot reach Prometheus."""
    with pytest.raises(ValueError, match="queue_jobs takes labels"):
        JOBS.sample(1, **labels)


def test_unknown_is_no_sample() -> None:
    """An unknown value makes no sample at all."""
    assert list(DONE.known(None, queue="a")) == []
    assert [sample.value for sample in DONE.known(0, queue="a")] == [0.0]


def test_exposition_escapes_and_types() -> None:
    """Counters and gauges are typed by their name, and label values survive quotes and line ends."""
    text = exposition([JOBS, DONE], [DONE.sample(2, queue='a"\n\\'), JOBS.sample(1, queue="q", state="s")])
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert families["immich_vitals_queue_done"].type == "counter"
    assert families["immich_vitals_queue_jobs"].type == "gauge"
    assert families["immich_vitals_queue_done"].samples[0].labels == {"queue": 'a"\n\\'}


def test_a_metric_without_samples_is_not_shown() -> None:
    """No empty families: HELP and TYPE lines stand only where there is a value."""
    assert "queue_done" not in exposition([JOBS, DONE], [JOBS.sample(1, queue="q", state="s")])

"""Golden cases: a folder holds what went in and, as `expected.prom`, what must come out."""

from collections.abc import Iterable
from pathlib import Path

from prometheus_client.exposition import generate_latest

from immich_vitals.metrics import Metric, Sample, families

ROOT = Path(__file__).parent.parent / "collectors" / "golden"


class _Registry:
    def __init__(self, found: list[object]) -> None:
        self._found = found

    def collect(self) -> list[object]:
        return self._found


def exposition(metrics: Iterable[Metric], samples: Iterable[Sample]) -> str:
    """The samples as Prometheus reads them, sorted within a family so that order does not matter."""
    found = families(metrics, samples)
    for family in found:
        family.samples.sort(key=lambda sample: sorted(sample.labels.items()))
    return generate_latest(_Registry(found)).decode()  # type: ignore[arg-type]


def cases(collector: str) -> list[Path]:
    """The case folders of one collector; pass to `pytest.mark.parametrize` with `ids=lambda path: path.name`."""
    return sorted(path for path in (ROOT / collector).iterdir() if path.is_dir())


def check(case: Path, metrics: Iterable[Metric], samples: Iterable[Sample], update: bool) -> None:
    """Compare with `expected.prom`, or rewrite it when `update` (`pytest --update-golden`)."""
    found = exposition(metrics, samples)
    expected = case / "expected.prom"
    if update:
        expected.write_text(found, encoding="utf-8")
    assert found == (expected.read_text(encoding="utf-8") if expected.exists() else "")

"""A real Prometheus with our rules, which waits less long than the rules say."""

import math
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import pytest
import yaml

from immich_vitals.demo.servers import free_port
from support.rulebook import seconds

DURATION = re.compile(r"(?<=\[)\w+(?=\])|(?<=\[)\w+(?=:)|(?<=offset )\w+")
AGE = re.compile(r"(?P<said>time\(\)[^<>]*[<>]=? (?:bool )?)(?P<seconds>\d+(?: \* \d+)*)\b")
START_SECONDS = 30.0


def hurried_rules(text: str, lasts: Callable[[float], float], window: Callable[[float], float]) -> str:
    """A rules file with every `for` and `keep_firing_for`, window, offset and age made shorter, and nothing else.

    An age is what `time() - ...` is compared with.
    """
    read = yaml.safe_load(text)
    for rule in (rule for group in read["groups"] for rule in group["rules"]):
        for key in {"for", "keep_firing_for"} & set(rule):
            rule[key] = f"{lasts(seconds(rule[key])) * 1000:.0f}ms"
        expr = DURATION.sub(lambda found: f"{window(seconds(found[0])) * 1000:.0f}ms", rule["expr"])
        rule["expr"] = AGE.sub(lambda found: f"{found['said']}{window(_product(found['seconds'])):g}", expr)
    return yaml.safe_dump(read, sort_keys=False)


def _product(factors: str) -> float:
    return math.prod(float(factor) for factor in factors.split(" * "))


class Prometheus:
    """Scrapes these targets every two seconds, evaluates every second, and tells an Alertmanager."""

    def __init__(self, folder: Path, rules: Iterable[Path], targets: list[str], alertmanager: str) -> None:
        self._folder = folder
        self._address = f"127.0.0.1:{free_port()}"
        self._config = {
            "global": {"scrape_interval": "2s", "scrape_timeout": "2s", "evaluation_interval": "1s"},
            "rule_files": [str(path) for path in rules],
            "scrape_configs": [{"job_name": "immich-vitals", "static_configs": [{"targets": targets}]}],
            "alerting": {"alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}]},
        }

    def __enter__(self) -> Self:
        program = shutil.which("prometheus")
        if program is None:
            pytest.skip("prometheus is not on the PATH; on Debian: apt-get install prometheus")
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "prometheus.yml").write_text(yaml.safe_dump(self._config))
        with (self._folder / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    program, "--config.file=prometheus.yml", "--storage.tsdb.path=data",
                    f"--web.listen-address={self._address}", "--rules.alert.resend-delay=1s",
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self._folder,
            )  # fmt: skip
        until = time.monotonic() + START_SECONDS
        while not self._answers():
            if time.monotonic() > until or self._process.poll() is not None:
                self.__exit__(None, None, None)
                raise AssertionError(f"Prometheus did not start: {(self._folder / 'prometheus.log').read_text()}")
            time.sleep(0.05)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(10)

    def query(self, expr: str) -> list[dict[str, str]]:
        """The labels of what the expression gives now."""
        answer = httpx.get(f"http://{self._address}/api/v1/query", params={"query": expr}, timeout=10)
        answer.raise_for_status()
        return [each["metric"] for each in answer.json()["data"]["result"]]

    def _answers(self) -> bool:
        try:
            return httpx.get(f"http://{self._address}/-/ready", timeout=1).status_code == 200
        except httpx.HTTPError:
            return False

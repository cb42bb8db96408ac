"""A real Alertmanager with our example configuration, and the webhook that it notifies instead of people."""

import json
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import pytest
import yaml

from support.inhibition import EXAMPLE
from support.server import START_SECONDS, Server

Alert = Mapping[str, str]
LAST = "ToldAfterAllOthers"


def program() -> str:
    """Alertmanager, as Debian or as its makers call it; without one the test is skipped."""
    found = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
    if found is None:
        pytest.skip("Alertmanager is not on the PATH; on Debian: apt-get install prometheus-alertmanager")
    return found


def amtool() -> str:
    found = shutil.which("amtool")
    if found is None:
        pytest.skip("amtool is not on the PATH; on Debian: apt-get install prometheus-alertmanager")
    return found


def for_this_release(config: str, rules: Path = EXAMPLE.parent) -> str:
    """The example as it lies here, for Debian's Alertmanager 0.25, which takes no file with the token of a bot."""
    return config.replace("bot_token_file: /etc/alertmanager/secrets/telegram-token", "bot_token: token").replace(
        "/etc/alertmanager/rules", str(rules)
    )


def hurried(config: str, webhook: str, group_wait: str = "1s") -> str:
    """The example with its routes and inhibitions as they are, told at once and to one webhook."""
    read = yaml.safe_load(for_this_release(config))
    read["receivers"] = [
        {"name": each["name"], "webhook_configs": [{"url": f"{webhook}/{each['name']}", "send_resolved": False}]}
        for each in read["receivers"]
    ]
    for route in [read["route"], *read["route"]["routes"]]:
        route.update({"group_wait": group_wait, "group_interval": "1s", "repeat_interval": "1h"})
    read["route"]["routes"].append({"matchers": [f'alertname="{LAST}"'], "receiver": "critical", "group_wait": "4s"})
    del read["global"], read["templates"]
    return yaml.safe_dump(read)


class Webhook:
    """Writes down every alert that it is notified of, and to which receiver, in order."""

    def __init__(self) -> None:
        self._heard: list[tuple[str, Alert]] = []
        self._changed = threading.Condition()
        webhook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                webhook._hear(self.path.strip("/"), body["alerts"])
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 128  # Alertmanager tells of many groups in one moment.

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def heard(self) -> list[tuple[str, Alert]]:
        """Pairs of receiver and the labels of the alert."""
        with self._changed:
            return list(self._heard)

    def wait_for(self, holds: Callable[[list[tuple[str, Alert]]], bool], seconds: float) -> bool:
        """Whether what was heard came to be so within this time."""
        with self._changed:
            return self._changed.wait_for(lambda: holds(self._heard), seconds)

    def _hear(self, receiver: str, alerts: Iterable[Mapping[str, Alert]]) -> None:
        with self._changed:
            self._heard.extend((receiver, alert["labels"]) for alert in alerts)
            self._changed.notify_all()


class Alertmanager(Server):
    """Runs until the end of the block, with its data in the folder."""

    def __init__(self, folder: Path, config: str) -> None:
        super().__init__(folder, program(), config, "--cluster.listen-address=", "--storage.path=data")

    def post(self, alerts: Iterable[Alert]) -> None:
        """As Prometheus sends alerts that fire now."""
        now = datetime.now(UTC).isoformat()
        body = [{"labels": dict(alert), "annotations": {}, "startsAt": now} for alert in alerts]
        httpx.post(f"http://{self.address}/api/v2/alerts", json=body, timeout=10).raise_for_status()


def notified(folder: Path, alerts: Iterable[Alert]) -> set[tuple[tuple[str, str], ...]]:
    """What a real Alertmanager with our example tells of these alerts, when it has told all it is going to."""
    with Webhook() as webhook, Alertmanager(folder, hurried(EXAMPLE.read_text(), webhook.url)) as server:
        server.post([*alerts, {"alertname": LAST}])
        assert webhook.wait_for(lambda heard: any(alert["alertname"] == LAST for _, alert in heard), START_SECONDS)
        return {tuple(sorted(alert.items())) for _, alert in webhook.heard() if alert["alertname"] != LAST}

"""A Kubernetes API with TLS that answers from lists of pods as its reference describes them, and checks every right."""

import json
import re
import ssl
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

from support.certificates import Signed, make_certificate
from support.fake_api import Handler, TlsServer

TOKEN = "eyJhbGciOiJSUzI1NiJ9.hunter2.hunter2"
ACCOUNT = "system:serviceaccount:immich:immich-vitals"
# As kubernetes/base/rbac.yaml has it: a test compares.
RIGHTS = frozenset(
    {("", "pods", "list"), ("", "pods", "watch"), ("", "pods/log", "get"), ("metrics.k8s.io", "pods", "list")}
)

_PATH = re.compile(
    r"/(?:api/v1|apis/(?P<group>metrics\.k8s\.io)/v1beta1)/namespaces/(?P<namespace>[^/]+)"
    r"/pods(?:/(?P<pod>[^/]+))?(?P<log>/log)?"
)


@dataclass
class FakeLog:
    """The log of one run of a container: its lines with their moments, and whether the run has ended."""

    lines: list[bytes] = field(default_factory=list)
    ended: bool = False


class FakeKubernetes:
    """`pods` are the items of the list of pods, `metrics` those of the metrics-server, None: there is none.

    `requests` are the (method, path with query) that came, `asked` the (group, resource, verb) that they needed, of
    which those in `rights` are granted. `statuses`, `bodies` and `dripping` go by the path without query, by its
    beginning, all of it, and all of it. `before` is called with each path before it is answered, and may block.
    `logs` go by (pod, container, previous).
    """

    def __init__(
        self, folder: Path, pods: list[dict[str, Any]], metrics: list[dict[str, Any]] | None = None,
        *, namespace: str = "immich", rights: Collection[tuple[str, str, str]] = RIGHTS,
    ) -> None:  # fmt: skip
        self.pods, self.metrics = pods, metrics
        self.namespace = namespace
        self.rights = set(rights)
        self.version = 1000
        self.requests: list[tuple[str, str]] = []
        self.asked: set[tuple[str, str, str]] = set()
        self.statuses: dict[str, int] = {}
        self.bodies: dict[str, bytes] = {}
        self.dripping: set[str] = set()
        self.before: Callable[[str], None] = lambda path: None
        self.logs: dict[tuple[str, str, bool], FakeLog] = {}
        self.watches_started = threading.Semaphore(0)
        self.gone_versions: set[str] = set()
        self.ended = threading.Event()
        self.changed = threading.Condition()
        self._watches: list[_Handler] = []
        self.account = folder / "account"
        self.account.mkdir(parents=True, exist_ok=True)
        authority = make_certificate(self.account, "authority", local=False)
        self._write_account(authority)
        self._server = _Server(self, make_certificate(folder, "kubernetes", authority))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def api(self) -> str:
        return f"https://127.0.0.1:{self._server.server_address[1]}"

    @property
    def environment(self) -> dict[str, str]:
        """The settings of an exporter in this cluster, as Kubernetes and our manifest make them."""
        return {
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT": str(self._server.server_address[1]),
            "IMMICH_VITALS_KUBERNETES_ACCOUNT_PATH": str(self.account),
        }

    def _write_account(self, authority: Signed) -> None:
        (self.account / "ca.crt").write_bytes(authority.public.read_bytes())
        (self.account / "token").write_text(TOKEN + "\n")
        (self.account / "namespace").write_text(self.namespace)

    def change(self, kind: str, pod: dict[str, Any]) -> None:
        """A pod was ADDED, MODIFIED or DELETED: it is so in the list, and told to every watch that stands."""
        self.version += 1
        pod = json.loads(json.dumps(pod))
        pod["metadata"]["resourceVersion"] = str(self.version)
        others = [each for each in self.pods if each["metadata"]["uid"] != pod["metadata"]["uid"]]
        self.pods = others if kind == "DELETED" else [*others, pod]
        self.say({"type": kind, "object": pod})

    def say(self, change: dict[str, Any]) -> None:
        """Send a change to every watch that stands."""
        for watch in list(self._watches):
            watch.chunk(json.dumps(change).encode() + b"\n")

    def drop_watches(self) -> None:
        """End every watch, as an API server that is stopped does."""
        for watch in list(self._watches):
            watch.finished.set()

    def write(self, pod: str, container: str, *lines: str) -> None:
        """A container writes lines to its log."""
        with self.changed:
            self.logs.setdefault((pod, container, False), FakeLog()).lines += [each.encode() + b"\n" for each in lines]
            self.changed.notify_all()

    def restart(self, pod: str, container: str) -> None:
        """The present run of a container ends, and a new one begins with an empty log."""
        with self.changed:
            was = self.logs.pop((pod, container, False))
            was.ended = True
            self.logs[pod, container, True] = was
            self.logs[pod, container, False] = FakeLog()
            self.changed.notify_all()

    def close(self) -> None:
        self.ended.set()
        self.drop_watches()
        with self.changed:
            self.changed.notify_all()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Handler(Handler):
    server: "_Server"

    def do_GET(self) -> None:
        fake = self.server.fake
        path, query = urlsplit(self.path).path, dict(parse_qsl(urlsplit(self.path).query))
        fake.requests.append((self.command, self.path))
        fake.before(path)
        for beginning, status in fake.statuses.items():
            if path.startswith(beginning):
                return self._status(status, "said the fake")
        if path in fake.bodies:
            return self._send(200, fake.bodies[path])
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._status(401, "Unauthorized")
        return self._answer(path, query)

    do_POST = do_PUT = do_DELETE = do_HEAD = do_PATCH = do_GET

    def _answer(self, path: str, query: dict[str, str]) -> None:
        fake = self.server.fake
        found = _PATH.fullmatch(path)
        if found is None or (found["group"] and fake.metrics is None):
            return self._send(404, b"404 page not found\n", kind="text/plain")
        resource = "pods/log" if found["log"] else "pods"
        verb = "get" if found["pod"] else "watch" if query.get("watch") else "list"
        right = (found["group"] or "", resource, verb)
        fake.asked.add(right)
        if right not in fake.rights or found["namespace"] != fake.namespace:
            return self._status(
                403,
                f'pods is forbidden: User "{ACCOUNT}" cannot {verb} resource "{resource}" in API group "{right[0]}"'
                f' in the namespace "{found["namespace"]}"',
            )
        if verb == "watch":
            return self._watch(query)
        if resource == "pods/log":
            return self._log(found["pod"], query)
        if found["group"]:
            return self._list("PodMetricsList", "metrics.k8s.io/v1beta1", fake.metrics or [], path)
        name = query.get("fieldSelector", "").removeprefix("metadata.name=")
        return self._list("PodList", "v1", [p for p in fake.pods if name in ("", p["metadata"]["name"])], path)

    def _list(self, kind: str, version: str, items: list[dict[str, Any]], path: str) -> None:
        fake = self.server.fake
        answer = {"kind": kind, "apiVersion": version, "metadata": {"resourceVersion": str(fake.version)}}
        self._send(200, json.dumps({**answer, "items": items}).encode(), drip=path in fake.dripping)

    def _status(self, code: int, message: str) -> None:
        status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code}
        self._send(code, json.dumps(status).encode())

    def _send(self, status: int, body: bytes, *, kind: str = "application/json", drip: bool = False) -> None:
        self.say(self.server.fake, status, body, kind=kind, drip=drip)

    def _begin(self, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.send_header("Connection", "close")
        self.end_headers()

    def _watch(self, query: dict[str, str]) -> None:
        fake = self.server.fake
        self._begin("application/json")
        if query["resourceVersion"] in fake.gone_versions:
            gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
            self.chunk(json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n")
            return self._finish()
        for pod in fake.pods:
            if int(pod["metadata"].get("resourceVersion", 0)) > int(query["resourceVersion"]):
                self.chunk(json.dumps({"type": "MODIFIED", "object": pod}).encode() + b"\n")
        fake._watches.append(self)
        fake.watches_started.release()
        self.finished.wait(30)
        fake._watches.remove(self)
        return self._finish()

    def _log(self, pod: str, query: dict[str, str]) -> None:
        fake = self.server.fake
        previous = query.get("previous") == "true"
        log = fake.logs.get((pod, query["container"], previous))
        if pod not in [each["metadata"]["name"] for each in fake.pods]:
            return self._status(404, f'pods "{pod}" not found')
        if log is None:
            which = "previous terminated container" if previous else "container"
            return self._status(400, f'{which} "{query["container"]}" in pod "{pod}" not found')
        since = query.get("sinceTime", "").removesuffix("Z").encode()
        told = [line for line in log.lines if line[:19] >= since]
        if "tailLines" in query:
            told = [line for line in log.lines[-int(query["tailLines"]) or len(log.lines) :] if line[:19] >= since]
        self._begin("text/plain")
        at = len(log.lines)
        for line in told:
            self.chunk(line)
        while query.get("follow") == "true" and not fake.ended.is_set():
            with fake.changed:
                if len(log.lines) == at and not log.ended:
                    fake.changed.wait(30)
                more, at = log.lines[at:], len(log.lines)
            for line in more:
                self.chunk(line)
            if log.ended and len(log.lines) == at:
                break
        return self._finish()

    def _finish(self) -> None:
        self.chunk(b"")
        self.close_connection = True


class _Server(TlsServer):
    def __init__(self, fake: FakeKubernetes, own: Signed) -> None:
        self.fake = fake
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(own.public, own.private)
        super().__init__(_Handler, tls)

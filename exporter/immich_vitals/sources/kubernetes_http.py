"""GET requests to a Kubernetes API within a deadline, and what its refusals mean.

Plain urllib3, as for Docker. The official client is not used: it has a time-out for each read and none for an answer,
brings two dozen packages along, and takes 42 MB more memory than urllib3 (measured with its version 37), half of what
this whole process may have. Nothing but GET is ever sent.

The module is imported when the first request is made, for those who have no Kubernetes.
"""

import json
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import urllib3
from urllib3.util.ssl_ import create_urllib3_context

from immich_vitals.collector import Absent, CollectorFailure, Deadline, TimedOut, Unavailable
from immich_vitals.settings import OWN
from immich_vitals.sources.http_within import (
    HEADERS,
    POOL_SIZE,
    Bytes,
    Params,
    Stream,
    TcpPool,
    TlsPool,
    asked,
    body_of,
    causes_of,
    is_timeout,
    name_of,
)

_API = OWN + "KUBERNETES_API"
_ACCOUNT = OWN + "KUBERNETES_ACCOUNT_PATH"
_REACH = (
    "look whether the API server is up (`kubectl get --raw /readyz`), and whether a NetworkPolicy keeps this pod away"
)


class Gone(Exception):
    """The version that a watch was to begin at is too old (410)."""


class Forbidden(Unavailable):
    """We lack the right to ask for it (403)."""


class Missing(Exception):
    """The API says that there is no such thing (404)."""


class NotYet(Exception):
    """The log of a container that has none: it has not begun, or that run of it is forgotten (400)."""


class Connection:
    """The way to one Kubernetes API. Any error but a plain refusal drops its sockets; the next request starts anew.

    `account` is a folder with `token` and `ca.crt`, both read again when they change; a token goes nowhere without TLS.
    May be shared between threads.
    """

    def __init__(self, address: str, account: Path) -> None:
        self._address = address
        self._account = account
        self._pool: urllib3.HTTPConnectionPool | None = None

    def get(self, path: str, deadline: Deadline, params: Params | None = None) -> object:
        """The JSON that answers `GET path`. Raises `Missing`, `Absent`, `Unavailable` or `TimedOut`."""
        with self._explained(path), self._send(path, params, deadline) as response:
            body = _body(response, deadline)
        if response.status != 200:
            raise _refused(response, body)
        return _parsed(body, path)

    def stream(self, path: str, params: Params, deadline: Deadline, quiet: float) -> Stream:
        """An answer that does not end; the deadline is for its beginning. Raises `Gone`, else as `get`."""
        response = self._opened(path, params, deadline)
        return Stream(response, quiet, _broken, lambda line: _parsed(line, path), ends=True)

    def bytes_of(self, path: str, params: Params, deadline: Deadline) -> Bytes:
        """An answer of bytes that does not end. Raises `NotYet`, else as `get`."""
        return Bytes(self._opened(path, params, deadline), _broken)

    def close(self) -> None:
        """Close the sockets; those in use end with their answer, and the next request makes a new one."""
        dropped, self._pool = self._pool, None
        if dropped is not None:
            dropped.close()

    def _opened(self, path: str, params: Params, deadline: Deadline) -> urllib3.BaseHTTPResponse:
        with self._explained(path):
            response = self._send(path, params, deadline)
            if response.status != 200:
                with response:
                    raise _refused(response, _body(response, deadline))
        return response

    def _send(self, path: str, params: Params | None, deadline: Deadline) -> urllib3.BaseHTTPResponse:
        limit = deadline.limit(f"ask Kubernetes for {path}")
        pool = self._pool or self._new_pool()
        self._pool = pool
        headers = {**HEADERS, "Accept": "application/json, */*"}
        if isinstance(pool, TlsPool):
            headers["Authorization"] = f"Bearer {self._token()}"
        return asked(pool, urlsplit(self._address).path.rstrip("/") + path, params, limit, headers)

    def _new_pool(self) -> urllib3.HTTPConnectionPool:
        parts = urlsplit(self._address)
        host = parts.hostname or ""
        if parts.scheme == "http":
            return TcpPool(host, parts.port or 80, maxsize=POOL_SIZE)
        context = create_urllib3_context()
        # Clusters have authorities without the key identifiers that Python 3.13 asks for.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        authority = self._account / "ca.crt"
        if authority.exists():
            context.load_verify_locations(authority)
        else:
            context.load_default_certs()
        return TlsPool(host, parts.port or 443, maxsize=POOL_SIZE, ssl_context=context)

    def _token(self) -> str:
        """As it is now: the kubelet writes a new one before the old one ends."""
        file = self._account / "token"
        try:
            text = file.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            raise Absent(
                f"there is no token for Kubernetes at {file}",
                mend="let the pod have the token of its service account (automountServiceAccountToken: true, as in"
                f" kubernetes/base/deployment.yaml), or name a folder that has one in {_ACCOUNT}",
            ) from None
        except (OSError, UnicodeError) as error:
            raise Unavailable(
                f"the token for Kubernetes at {file} cannot be read ({type(error).__name__})",
                mend="let the user of this process read it: fsGroup in the securityContext of the pod",
            ) from None
        if not re.fullmatch(r"[!-~]+", text):
            raise Unavailable(f"what lies at {file} is no token", mend=f"look what it is that {_ACCOUNT} names")
        return text

    @contextmanager
    def _explained(self, path: str) -> Iterator[None]:
        """Turn what the transport raises into a sentence with a mend."""
        try:
            yield
        except (urllib3.exceptions.HTTPError, OSError) as error:
            self.close()
            raise self._explanation(error, path) from error

    def _explanation(self, error: Exception, path: str) -> CollectorFailure:
        causes = list(causes_of(error))
        if any(is_timeout(cause) for cause in causes):
            return TimedOut(f"Kubernetes did not answer GET {path} in time", mend=_REACH)
        if any(isinstance(cause, urllib3.exceptions.SSLError | ssl.SSLError) for cause in causes):
            return Unavailable(
                f"no TLS with Kubernetes at {self._address}",
                mend=f"look whether {self._account / 'ca.crt'} is the authority of this cluster, and whether {_API},"
                " if it is set, names the API server by a name in its certificate",
            )
        return Unavailable(
            f"Kubernetes at {self._address} refused or broke the connection ({name_of(causes)})", mend=_REACH
        )


def _body(response: urllib3.BaseHTTPResponse, deadline: Deadline) -> bytes:
    return body_of(response, deadline, "Kubernetes", _API)


def _parsed(body: bytes, path: str) -> object:
    try:
        found: object = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Unavailable(f"the answer to GET {path} is not JSON", mend=f"look what it is that {_API} names") from error
    return found


def _refused(response: urllib3.BaseHTTPResponse, body: bytes) -> Exception:
    path = urlsplit(response.url or "").path
    said = _said(body)
    match response.status:
        case 400 if path.endswith("/log"):
            return NotYet()
        case 401:
            return Unavailable(
                "Kubernetes does not take the token of this exporter (status 401)",
                mend="the token is of another cluster, or its service account is gone: make the pod anew"
                " (kubectl rollout restart deployment/immich-vitals)",
            )
        case 403:
            return Forbidden(f"Kubernetes forbids GET {path}{said}", mend=_binding(path, said))
        case 404:
            return Missing()
        case 410:
            return Gone()
    return Unavailable(
        f"Kubernetes answered GET {path} with status {response.status}",
        mend="look at the API server: `kubectl get --raw /readyz?verbose`",
    )


def _binding(path: str, said: str) -> str:
    """Which RoleBinding is missing, with the names in the refusal."""
    who = re.search(r"system:serviceaccount:([-.\w]+):([-.\w]+)", said)
    namespace = re.search(r"/namespaces/([^/]+)", path)
    account = f"{who[2]} (namespace {who[1]})" if who else "of this pod"
    where = namespace[1] if namespace else "?"
    return (
        f"make the Role and the RoleBinding immich-vitals of kubernetes/base/rbac.yaml in namespace {where},"
        f" for the service account {account}"
    )


def _said(body: bytes) -> str:
    """The API's own words, if it is an API that speaks."""
    try:
        message = json.loads(body)["message"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return ""
    return f": {' '.join(str(message).split())[:300]}"


def _broken(how: str) -> Unavailable:
    return Unavailable(f"an answer of Kubernetes broke ({how})", mend=_REACH)

"""GET requests to a Docker API within a deadline, and what its refusals mean.

urllib3 gives the connections, their pool and TLS. The Docker SDK is not used: it sends without a deadline for the whole
answer, follows events without a time-out, leaves sockets open that it could not connect, and takes half a millisecond
more for each request and 6 MB of memory. Nothing but GET is ever sent.

The module is imported when the first request is made, for those who have no Docker.
"""

import json
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import urllib3

from immich_vitals.collector import Absent, CollectorFailure, Deadline, TimedOut, Unavailable
from immich_vitals.sources.http_within import (
    HEADERS,
    POOL_SIZE,
    Bytes,
    Params,
    Stream,
    TcpPool,
    TlsPool,
    UnixPool,
    asked,
    body_of,
    causes_of,
    is_timeout,
    name_of,
)

# Docker 25 to 29 speak this version; older and newer ones say which they speak instead.
API_VERSION = "1.44"


class Connection:
    """The way to one Docker API. Any error but a plain refusal drops its sockets; the next request starts anew.

    `address` is `unix:///path`, `tcp://host:port` or `http(s)://host:port`; with `certificates`, the folder of
    `ca.pem`, `cert.pem` and `key.pem`, TLS is used. May be shared between threads.
    """

    def __init__(self, address: str, certificates: Path | None) -> None:
        self._address = address
        self._socket = Path(address.removeprefix("unix://")) if address.startswith("unix://") else None
        self._prefix = ""
        self._certificates = certificates
        self._version: str | None = None
        if self._socket is None:
            self._prefix = _server(address)[1]
        self._pool = self._new_pool()

    def get(self, path: str, deadline: Deadline, params: Params | None = None, longest: float | None = None) -> object:
        """The JSON that answers `GET path`, or None when there is no such thing (404, or 409 "is not running").

        `longest` is how many seconds it may take, besides the deadline. Raises `Absent`, `Unavailable`, `TimedOut`.
        """
        if longest is not None:
            deadline = deadline.within(longest)
        with self._explained(path), self._open(path, params, deadline) as response:
            body = _body(response, deadline)
        if response.status in (404, 409):
            return None
        if response.status != 200:
            raise _refused(response)
        return _parsed(body, path)

    def stream(self, path: str, params: Params, deadline: Deadline, quiet: float) -> "Stream":
        """An answer that does not end; the deadline is for its beginning. Errors as of `get`.

        `quiet` is how many seconds of silence are waited for.
        """
        with self._explained(path):
            response = self._open(path, params, deadline)
            if response.status != 200:
                with response:
                    raise _refused(response)
        return Stream(response, quiet, _broken, lambda line: _parsed(line, "/events"))

    def bytes_of(self, path: str, params: Params, deadline: Deadline) -> "Bytes | None":
        """An answer of bytes that does not end, or None when there is no such thing; else as `stream`."""
        with self._explained(path):
            response = self._open(path, params, deadline)
            if response.status != 200:
                with response:
                    body = _body(response, deadline)
                if response.status in (404, 409):
                    return None
                raise _not_readable(path) if b"does not support reading" in body else _refused(response)
        return Bytes(response, _broken)

    def close(self) -> None:
        """Close the sockets; those in use end with their answer, and the next request makes a new one."""
        self._pool, dropped = self._new_pool(), self._pool
        dropped.close()

    def _new_pool(self) -> urllib3.HTTPConnectionPool:
        if self._socket is not None:
            return UnixPool(self._socket)
        (host, port), _ = _server(self._address)
        scheme = urlsplit(self._address).scheme
        try:
            if scheme == "http" or (scheme == "tcp" and self._certificates is None):
                return TcpPool(host, port, maxsize=POOL_SIZE)
            return TlsPool(host, port, maxsize=POOL_SIZE, **(_tls(self._certificates) if self._certificates else {}))
        except urllib3.exceptions.LocationValueError:
            raise _no_address() from None

    def _open(self, path: str, params: Params | None, deadline: Deadline) -> urllib3.BaseHTTPResponse:
        """The beginning of the answer, asked for in a version of the API that the daemon speaks."""
        if self._version is None:
            self._version = self._negotiate(deadline)
        response = self._send(f"/v{self._version}{path}", params, deadline)
        if response.status == 400 and (spoken := _version_in(_body(response, deadline))):
            self._version = spoken
            response = self._send(f"/v{spoken}{path}", params, deadline)
        return response

    def _negotiate(self, deadline: Deadline) -> str:
        """The version to speak. Where a filtering proxy forbids the question: ours, and the daemon will correct us."""
        with self._send("/version", None, deadline) as response:
            body = _body(response, deadline)
        spoken = _parsed(body, "/version") if response.status == 200 else None
        facts = spoken if isinstance(spoken, dict) else {}
        newest, oldest = _number(facts.get("ApiVersion")), _number(facts.get("MinAPIVersion"))
        ours = _number(API_VERSION) or (0, 0)
        version = max(min(ours, newest or ours), oldest or (0, 0))
        return f"{version[0]}.{version[1]}"

    def _send(self, path: str, params: Params | None, deadline: Deadline) -> urllib3.BaseHTTPResponse:
        limit = deadline.limit(f"ask Docker for {path}")
        return asked(self._pool, self._prefix + path, params, limit, HEADERS)

    @contextmanager
    def _explained(self, path: str) -> Iterator[None]:
        """Turn what the transport raises into a sentence with a mend."""
        try:
            yield
        except (urllib3.exceptions.HTTPError, OSError) as error:
            self.close()
            self._version = None  # whoever answers next time may be another Docker
            raise self._explanation(error, path) from error

    def _explanation(self, error: Exception, path: str) -> CollectorFailure:
        causes = list(causes_of(error))
        if any(is_timeout(cause) for cause in causes):
            return TimedOut(
                f"Docker did not answer GET {path} in time",
                mend="look whether `docker ps` hangs, too; if it does, restart the Docker daemon",
            )
        if any(isinstance(cause, urllib3.exceptions.SSLError | ssl.SSLError) for cause in causes):
            return Unavailable(
                f"no TLS with Docker at {self._address}",
                mend="look whether DOCKER_TLS_VERIFY and the certificates in DOCKER_CERT_PATH fit the daemon's",
            )
        about_socket = _about_socket(self._socket, causes) if self._socket is not None else None
        return about_socket or Unavailable(
            f"Docker at {self._address} refused or broke the connection ({name_of(causes)})",
            mend="look whether the Docker daemon, or the proxy that DOCKER_HOST names, is running",
        )


def _body(response: urllib3.BaseHTTPResponse, deadline: Deadline) -> bytes:
    return body_of(response, deadline, "Docker", "DOCKER_HOST")


def _parsed(body: bytes, path: str) -> object:
    try:
        found: object = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Unavailable(
            f"the answer to GET {path} is not JSON",
            mend="look whether it is a Docker API that DOCKER_HOST names",
        ) from error
    return found


def _refused(response: urllib3.BaseHTTPResponse) -> CollectorFailure:
    path = urlsplit(response.url or "").path
    status = response.status
    if status in (401, 403, 405, 501):
        return Unavailable(
            f"GET {path} is forbidden (status {status})",
            mend="let the proxy of the Docker socket allow GET on containers and events "
            f"(CONTAINERS=1 and EVENTS=1); it refused {path}",
        )
    return Unavailable(
        f"Docker answered GET {path} with status {status}",  # its own words may name a path or a command of somebody's
        mend="look into the log of the Docker daemon, or of the proxy that DOCKER_HOST names",
    )


def _version_in(body: bytes) -> str | None:
    """The version to speak, from "client version 1.44 is too new. Maximum supported API version is 1.41"."""
    found = re.search(rb"(?:Maximum|Minimum) supported API version is (\d{1,3}\.\d{1,3})", body)
    return found[1].decode() if found else None


def _number(version: object) -> tuple[int, int] | None:
    found = re.fullmatch(r"(\d{1,3})\.(\d{1,3})(?:\.\d+)*", version) if isinstance(version, str) else None
    return (int(found[1]), int(found[2])) if found else None


def _server(address: str) -> tuple[tuple[str, int], str]:
    """Host and port, and the path before that of each request. Raises `Unavailable` when there is no port."""
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "127.0.0.1", parts.port
    except ValueError:
        port = None
    if not port or parts.query or parts.fragment or parts.username:
        raise _no_address()
    return (host, port), parts.path.rstrip("/")


def _no_address() -> Unavailable:
    return Unavailable(
        "the address in DOCKER_HOST is none of a Docker API: it has no port, or more than host and port",
        mend="write DOCKER_HOST as unix:///path or tcp://host:port",
    )


def _tls(folder: Path) -> dict[str, Any]:
    certificate, key, authority = folder / "cert.pem", folder / "key.pem", folder / "ca.pem"
    own = {"cert_file": str(certificate), "key_file": str(key)} if certificate.exists() else {}
    return {"cert_reqs": "CERT_REQUIRED", "ca_certs": str(authority) if authority.exists() else None, **own}


def _not_readable(path: str) -> Unavailable:
    return Unavailable(
        f"the logging driver of container {path.split('/')[2]} keeps no log that can be read",
        mend="give it the logging driver local or json-file in its compose file (`logging: {driver: local}`), or name"
        " its log in IMMICH_VITALS_LOG_FILES",
    )


def _broken(how: str) -> Unavailable:
    return Unavailable(
        f"the stream of Docker's events broke ({how})",
        mend="look whether the Docker daemon is running, and whether a proxy before it ends long answers",
    )


def _about_socket(path: Path, causes: list[BaseException]) -> CollectorFailure | None:
    """The failure, when it is the socket's file and not who listens there."""
    if any(isinstance(cause, FileNotFoundError) for cause in causes):
        return Absent(
            f"the Docker socket {path} is not there",
            mend="start Docker, mount the socket into this container, or set DOCKER_HOST to where it answers",
        )
    if any(isinstance(cause, PermissionError) for cause in causes):
        return Unavailable(
            f"no right to connect to the Docker socket {path}",
            mend="run with the socket's group (group_add in compose, group docker on the host), "
            "or set DOCKER_HOST to a filtering proxy of the socket",
        )
    if path.exists() and not path.is_socket():
        return Absent(
            f"{path} is not a socket",
            mend="if it is an empty folder, Docker made it because the socket was not there to be mounted: "
            "remove it, start Docker or correct the mount",
        )
    return None

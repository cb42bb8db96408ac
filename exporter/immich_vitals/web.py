"""The exporter toolkit's web configuration file: TLS, client certificates, basic authentication, headers.

Its keys are those of https://github.com/prometheus/exporter-toolkit, so a file that serves node_exporter serves
this exporter too. The file, and the certificates it names, are read again when they change; a change that cannot
be used is logged and the last good state stays in force.
"""

import asyncio
import base64
import binascii
import hashlib
import hmac
import logging
import re
import ssl
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import bcrypt

from immich_vitals import yaml_file
from immich_vitals.config import ConfigError, Mistake
from immich_vitals.flight import start_thread
from immich_vitals.settings import OWN

log = logging.getLogger(__name__)

SETTING = OWN + "WEB_CONFIG_FILE"
TLS_VERSIONS = {
    "TLS10": ssl.TLSVersion.TLSv1,
    "TLS11": ssl.TLSVersion.TLSv1_1,
    "TLS12": ssl.TLSVersion.TLSv1_2,
    "TLS13": ssl.TLSVersion.TLSv1_3,
}
CLIENT_AUTH = {
    "": ssl.CERT_NONE,
    "NoClientCert": ssl.CERT_NONE,
    "RequestClientCert": ssl.CERT_NONE,  # asks, and takes any answer: no difference to not asking
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}
HEADERS = (
    "Content-Security-Policy",
    "Strict-Transport-Security",
    "X-Content-Type-Options",
    "X-Frame-Options",
    "X-XSS-Protection",
)
CURVES = {"CurveP256": "prime256v1", "CurveP384": "secp384r1", "CurveP521": "secp521r1", "X25519": "X25519"}
TLS_KEYS = (
    "cert_file", "key_file", "client_auth_type", "client_ca_file", "client_allowed_sans", "min_version",
    "max_version", "cipher_suites", "prefer_server_cipher_suites", "curve_preferences",
)  # fmt: skip
# bcrypt doubles its work with each step; 16 already takes seconds for every request that is not cached.
HIGHEST_COST = 16
REMEMBERED_LOGINS = 100
# Passwords that wait for their turn to be compared, in all and of one address: what is more is turned away, so that
# guesses in masses take no memory, and those of one address no other's turn.
WAITING_LOGINS = 64
WAITING_LOGINS_OF_ONE = 4


class TooManyLogins(Exception):
    """The password is not known yet, and too many others wait to be compared."""


@dataclass(frozen=True, slots=True)
class WebSettings:
    """What a web configuration file says. `files` are all files whose change calls for a new reading."""

    users: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    tls: ssl.SSLContext | None = None
    allowed_sans: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()


def read(path: Path) -> WebSettings:
    """The settings in the file. Raises `ConfigError` with every mistake in it."""
    return _Reader(path).read()


class _Reader:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._mistakes: list[Mistake] = []

    def read(self) -> WebSettings:
        try:
            loaded = yaml_file.read(self._path)
        except yaml_file.NotUsable as error:
            raise ConfigError([Mistake(SETTING, f"{str(self._path)!r} {error.problem}", error.mend)]) from None
        top = self._mapping("", loaded, ("tls_server_config", "http_server_config", "basic_auth_users"))
        tls = self._mapping("tls_server_config", top.get("tls_server_config"), TLS_KEYS)
        http = self._mapping("http_server_config", top.get("http_server_config"), ("http2", "headers"))
        headers = self._mapping("http_server_config.headers", http.get("headers"), HEADERS)
        for name, value in headers.items():
            if not re.fullmatch(r"[^\x00-\x1f\x7f]*", str(value)):
                self._wrong(f"http_server_config.headers.{name}", "does not fit in one line", "write it in one line")
        users = self._users(top.get("basic_auth_users"))
        context = self._context(tls) if tls else None
        if self._mistakes:
            raise ConfigError(self._mistakes)
        named = [tls.get(name) for name in ("cert_file", "key_file", "client_ca_file")]
        return WebSettings(
            users=users,
            headers={name: str(value) for name, value in headers.items()},
            tls=context,
            allowed_sans=tuple(self._strings(tls, "client_allowed_sans")),
            files=(self._path, *(self._beside(str(name)) for name in named if name)),
        )

    def _wrong(self, key: str, problem: str, mend: str) -> None:
        self._mistakes.append(Mistake(f"{self._path.name}: {key}" if key else self._path.name, problem, mend))

    def _mapping(self, key: str, value: object, known: Sequence[str]) -> dict[str, object]:
        if value is None:
            return {}
        if not isinstance(value, dict):
            self._wrong(key, "is not a mapping", "write it as `name: value` lines")
            return {}
        for name in value:
            if name not in known:
                self._wrong(f"{key}.{name}".lstrip("."), "is not known", f"use one of {', '.join(known)}")
        return {str(name): item for name, item in value.items()}

    def _strings(self, tls: Mapping[str, object], key: str) -> list[str]:
        value = tls.get(key) or []
        if isinstance(value, list):
            return [str(item) for item in value]
        self._wrong(f"tls_server_config.{key}", "is not a list", "write the items as a list")
        return []

    def _users(self, value: object) -> dict[str, str]:
        if value is None:
            return {}
        if not isinstance(value, dict):
            self._wrong("basic_auth_users", "is not a mapping", "write `user: bcrypt hash` lines")
            return {}
        users = {str(user): str(found) for user, found in value.items()}
        for user, found in users.items():
            parts = re.fullmatch(r"\$2[abxy]\$(\d\d)\$[./A-Za-z0-9]{53}", found)
            if parts is None:
                self._wrong(
                    f"basic_auth_users.{user}",
                    "the value (not shown) is not a bcrypt hash",
                    "make one with `htpasswd -nBC 10 user`; never write the password itself",
                )
            elif not 4 <= int(parts[1]) <= HIGHEST_COST:
                self._wrong(
                    f"basic_auth_users.{user}",
                    f"its cost is not from 4 to {HIGHEST_COST}",
                    "use a cost of 10",
                )
        return users

    def _beside(self, name: str) -> Path:
        return self._path.parent / name

    def _context(self, tls: Mapping[str, object]) -> ssl.SSLContext | None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        cert, key = tls.get("cert_file"), tls.get("key_file")
        if not cert or not key:
            self._wrong("tls_server_config", "needs cert_file and key_file", "name both, relative to this file")
            return None
        try:
            # Without a password OpenSSL would ask for one at the terminal, and wait.
            context.load_cert_chain(self._beside(str(cert)), self._beside(str(key)), password="")
        except (OSError, ssl.SSLError) as error:
            self._wrong(
                "tls_server_config",
                f"certificate and key do not load: {_ssl_reason(error)}",
                "name a PEM pair",
            )
        self._client_auth(context, tls)
        for setting, attribute in (("min_version", "minimum_version"), ("max_version", "maximum_version")):
            wanted = str(tls.get(setting) or ("TLS12" if setting == "min_version" else "TLS13"))
            if wanted in TLS_VERSIONS:
                setattr(context, attribute, TLS_VERSIONS[wanted])
            else:
                self._wrong(
                    f"tls_server_config.{setting}",
                    f"{wanted!r} is not known",
                    f"use {', '.join(TLS_VERSIONS)}",
                )
        self._ciphers(context, tls)
        return context

    def _client_auth(self, context: ssl.SSLContext, tls: Mapping[str, object]) -> None:
        kind = str(tls.get("client_auth_type") or "")
        authority = tls.get("client_ca_file")
        if kind not in CLIENT_AUTH:
            self._wrong("tls_server_config.client_auth_type", f"{kind!r} cannot be served here",
                        f"use one of {', '.join(filter(None, CLIENT_AUTH))}")  # fmt: skip
            return
        if CLIENT_AUTH[kind] is not ssl.CERT_NONE and not authority:
            self._wrong(
                "tls_server_config.client_ca_file",
                f"is missing, and {kind} needs it",
                "name the CA's PEM file",
            )
        if authority and CLIENT_AUTH[kind] is ssl.CERT_NONE:
            self._wrong("tls_server_config.client_auth_type", "does not check the certificates of client_ca_file",
                        "use RequireAndVerifyClientCert")  # fmt: skip
        if authority:
            try:
                context.load_verify_locations(self._beside(str(authority)))
            except (OSError, ssl.SSLError) as error:
                self._wrong(
                    "tls_server_config.client_ca_file",
                    f"does not load: {_ssl_reason(error)}",
                    "name a PEM file",
                )
        context.verify_mode = CLIENT_AUTH[kind]

    def _ciphers(self, context: ssl.SSLContext, tls: Mapping[str, object]) -> None:
        suites = self._strings(tls, "cipher_suites")
        if suites:
            try:
                context.set_ciphers(":".join(openssl_name(suite) for suite in suites))
            except ssl.SSLError:
                self._wrong("tls_server_config.cipher_suites", "no suite of the list is known here", "leave it out")
        curves = self._strings(tls, "curve_preferences")
        if len(curves) > 1:
            self._wrong("tls_server_config.curve_preferences", "lists several curves; only one can be set here",
                        "list one, or leave it out for the defaults")  # fmt: skip
        elif curves and curves[0] in CURVES:
            context.set_ecdh_curve(CURVES[curves[0]])
        elif curves:
            self._wrong(
                "tls_server_config.curve_preferences",
                f"{curves[0]!r} is not known",
                f"use one of {', '.join(CURVES)}",
            )


def openssl_name(suite: str) -> str:
    """OpenSSL's name of a TLS 1.2 cipher suite that is given by its standard name, as Go and the toolkit do."""
    name = suite.removeprefix("TLS_").replace("_WITH_", "-")
    name = re.sub(r"AES_(\d+)", r"AES\1", name).replace("_CBC_SHA", "-SHA")
    name = re.sub(r"CHACHA20_POLY1305(_SHA256)?", "CHACHA20-POLY1305", name)
    return name.replace("_", "-").removeprefix("RSA-") if name.startswith("RSA-") else name.replace("_", "-")


def _ssl_reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or "it is not PEM, or has a password").lower().replace("_", " ")
    return getattr(error, "strerror", None) or "it cannot be read"


class Web:
    """The web settings in force. With no file everything is open, as with every exporter."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._settings = read(path) if path else WebSettings()
        self._seen = _signature(self._settings.files)
        self._right: dict[bytes, None] = {}
        self._wrong: dict[bytes, None] = {}
        self._waiting: Counter[str] = Counter()
        self._checking = asyncio.Lock()

    @property
    def tls(self) -> bool:
        return self._settings.tls is not None

    def current(self) -> WebSettings:
        """The settings, read again when a file has changed."""
        if self._path is None:
            return self._settings
        seen = _signature(self._settings.files)
        if seen != self._seen:
            self._seen = seen
            try:
                fresh = read(self._path)
                if (fresh.tls is None) != (self._settings.tls is None):
                    log.warning(
                        "TLS cannot be switched on or off while running; restart",
                        extra={"file": str(self._path)},
                    )
                    return self._settings
                self._settings = fresh
                self._seen = _signature(fresh.files)
                self._right.clear()
                self._wrong.clear()
                log.info("web configuration read again", extra={"file": str(self._path)})
            except ConfigError as error:
                log.warning("web configuration not usable, keeping the last", extra={"detail": str(error)})
        return self._settings

    async def allowed(self, authorization: str | None, client: str) -> bool:
        """Whether a request of the address `client` with this Authorization header may pass.

        Raises `TooManyLogins`. A login that has passed before never waits, whatever others try.
        """
        users = self.current().users
        if not users:
            return True
        login = _basic(authorization)
        if login is None:
            return False
        user, password = login
        # An unknown user costs as much time as a known one.
        known = users.get(user)
        expected = known or next(iter(users.values()))
        key = hmac.digest(expected.encode(), user.encode() + b"\0" + password, "sha256")
        if key in self._right or key in self._wrong:
            return key in self._right
        if self._waiting[client] >= WAITING_LOGINS_OF_ONE or self._waiting.total() >= WAITING_LOGINS:
            raise TooManyLogins
        self._waiting[client] += 1
        try:
            async with self._checking:
                if key not in self._right and key not in self._wrong:
                    right = await asyncio.wrap_future(_check(password, expected)) and known is not None
                    _remember(self._right if right else self._wrong, key)
                return key in self._right
        finally:
            self._waiting[client] -= 1
            if not self._waiting[client]:
                del self._waiting[client]


def _remember(keys: dict[bytes, None], key: bytes) -> None:
    """Add the key; of too many the oldest is forgotten."""
    if len(keys) >= REMEMBERED_LOGINS:
        del keys[next(iter(keys))]
    keys[key] = None


def _check(password: bytes, expected: str) -> Future[bool]:
    """Compare in a thread: bcrypt takes its time by design, and meanwhile scrapes must be served."""
    future: Future[bool] = Future()
    future.set_running_or_notify_cancel()

    def check() -> None:
        try:
            # Classic bcrypt reads 72 bytes and no NUL; the library raises for more.
            future.set_result(b"\0" not in password and bcrypt.checkpw(password[:72], expected.encode()))
        except ValueError:
            future.set_result(False)

    start_thread(check, "bcrypt")
    return future


def _basic(header: str | None) -> tuple[str, bytes] | None:
    scheme, _, encoded = (header or "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
        return (user.decode(), password) if colon else None
    except (binascii.Error, UnicodeError):
        return None


def _signature(files: Sequence[Path]) -> bytes:
    """Changes when one of the files is changed, replaced, removed, or its symbolic link is turned (Kubernetes)."""
    digest = hashlib.sha256()
    for file in files:
        try:
            found = file.stat()
            digest.update(repr((found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev)).encode())
        except OSError:
            digest.update(b"missing")
    return digest.digest()


class ReloadingContext(ssl.SSLContext):
    """Makes each new connection with the TLS context in force at that moment.

    asyncio takes one context when it starts to listen; it asks it for nothing but `wrap_bio`.
    """

    web: Web

    @classmethod
    def of(cls, web: Web) -> "ReloadingContext":
        context = cls(ssl.PROTOCOL_TLS_SERVER)
        context.web = web
        return context

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        current = self.web.current().tls
        if current is None:
            raise ssl.SSLError("TLS is not configured")
        return current.wrap_bio(incoming, outgoing, server_side, server_hostname, session)


def san_allowed(certificate: Mapping[str, object] | None, allowed: Sequence[str]) -> bool:
    """Whether the client certificate carries one of the allowed subject alternative names; no list allows all."""
    if not allowed:
        return True
    names = (certificate or {}).get("subjectAltName", ())
    return isinstance(names, tuple) and any(value in allowed for _, value in names)

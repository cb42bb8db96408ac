"""Certificates as a phone judges them: what is trusted, and until when.

The judgement is OpenSSL's. Like the phones, and unlike some browsers on a desk, it does not fetch an intermediate
certificate that the server forgot to send.
"""

import _ssl
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from immich_vitals.collector import Absent, Deadline, Unavailable
from immich_vitals.sources.http_probe import Untrusted, Way

if TYPE_CHECKING:
    from collections.abc import Sequence

SETTING = "IMMICH_VITALS_PROBE_CA_FILE"


@dataclass(frozen=True, slots=True)
class CertificateFacts:
    """`expires`, in seconds since the epoch, is when the chain that was found good ends, which its first certificate
    to expire does; of an untrusted one, when the server's own does. `starts` is of the same certificate. `problem` is
    why it is not trusted, in OpenSSL's words; empty when it is."""

    starts: float | None = None
    expires: float | None = None
    problem: str = ""

    @property
    def trusted(self) -> bool:
        return not self.problem


class Trust:
    """The authorities to trust: the system's and those in `ca_file`, which is read again when it changes."""

    def __init__(self, ca_file: Path | None) -> None:
        self._ca_file = ca_file
        self._changed: tuple[int, int] | None = None
        self._strict: ssl.SSLContext | None = None
        self._lenient: ssl.SSLContext | None = None

    def strict(self) -> ssl.SSLContext:
        """TLS that ends when the certificate is not to be trusted. Raises `Absent` or `Unavailable` on account of
        the file."""
        changed = self._stamp()
        if self._strict is None or changed != self._changed:
            self._strict, self._changed = self._made(), changed
        return self._strict

    def lenient(self) -> ssl.SSLContext:
        """TLS with whoever answers: to look at a certificate that is not trusted. Never for a secret."""
        if self._lenient is None:
            self._lenient = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            self._lenient.check_hostname = False
            self._lenient.verify_mode = ssl.CERT_NONE
        return self._lenient

    def _stamp(self) -> tuple[int, int] | None:
        if self._ca_file is None:
            return None
        try:
            found = self._ca_file.stat()
        except OSError as error:
            raise Absent(
                f"{SETTING}: cannot read {str(self._ca_file)!r}: {error.strerror}",
                mend="name a file that this user can read, or unset it to trust the system's authorities alone",
            ) from None
        return found.st_mtime_ns, found.st_size

    def _made(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        # From Python 3.13 on the default also refuses authorities of one's own that phones put up with.
        context.verify_flags = ssl.VerifyFlags.VERIFY_X509_TRUSTED_FIRST
        if self._ca_file is not None:
            try:
                context.load_verify_locations(cafile=str(self._ca_file))
            except (OSError, ValueError) as error:
                why = "there is no certificate in it" if isinstance(error, ssl.SSLError) else str(error)
                raise Unavailable(
                    f"{SETTING}: cannot use {str(self._ca_file)!r}: {why}",
                    mend="write the certificate of your authority into it, as PEM (-----BEGIN CERTIFICATE-----)",
                ) from None
        return context


def examine(way: Way, trust: Trust, deadline: Deadline) -> CertificateFacts:
    """The certificate of the server. Raises `NoAnswer` when there is none to see, and what `Trust.strict` raises."""
    problem = ""
    try:
        with Way(way.origin, way.addresses, trust.strict()).connected(deadline) as sock:
            chain = _verified_chain(sock)
    except Untrusted as untrusted:
        problem = str(untrusted)
        with Way(way.origin, way.addresses, trust.lenient()).connected(deadline) as sock:
            chain = [_own(sock)]
    spans = [span for each in chain if (span := validity(each)) is not None]
    if not spans:
        return CertificateFacts(problem=problem)
    starts, expires = min(spans, key=lambda span: span[1])
    return CertificateFacts(starts, expires, problem)


def _own(sock: object) -> bytes:
    assert isinstance(sock, ssl.SSLSocket)
    return sock.getpeercert(binary_form=True) or b""


def _verified_chain(sock: object) -> "Sequence[bytes]":
    """From the server's own up to the authority. Not the chain as sent: that may hold an old certificate which nobody
    needs any more, as the one that expired in 2021 beside Let's Encrypt's."""
    assert isinstance(sock, ssl.SSLSocket)
    if hasattr(sock, "get_verified_chain"):  # Python 3.13
        return list(sock.get_verified_chain())
    chain = sock._sslobj.get_verified_chain() or ()  # type: ignore[attr-defined]
    return [each.public_bytes(_ssl.ENCODING_DER) for each in chain]


def validity(der: bytes) -> tuple[float, float] | None:
    """From when to when the certificate is good, in seconds since the epoch; None when it is none. Python gives this
    only of one that it trusts, and the library that would read others costs 8 MB."""
    try:
        _, certificate, _ = _element(der)
        _, signed, _ = _element(certificate)
        tag, _, rest = _element(signed)
        if tag == 0xA0:  # the version, which the oldest certificates leave out
            _, _, rest = _element(rest)
        for _ in range(2):  # the algorithm and the issuer, after the serial number
            _, _, rest = _element(rest)
        _, span, _ = _element(rest)
        start_tag, start, rest = _element(span)
        end_tag, end, _ = _element(rest)
        return _moment(start_tag, start), _moment(end_tag, end)
    except (IndexError, ValueError):
        return None


def _moment(tag: int, content: bytes) -> float:
    text = content.decode("ascii")
    if tag == 0x17:  # UTCTime has two digits for the year
        text = ("20" if int(text[:2]) < 50 else "19") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _element(der: bytes) -> tuple[int, bytes, bytes]:
    """The first element of DER: its tag, its content, and what comes after it."""
    length, start = der[1], 2
    if length & 0x80:
        size = length & 0x7F
        length, start = int.from_bytes(der[2 : 2 + size], "big"), 2 + size
    if len(der) < start + length:
        raise ValueError("cut off")
    return der[0], der[start : start + length], der[start + length :]

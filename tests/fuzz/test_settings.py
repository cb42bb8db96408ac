"""Settings may say anything: they are taken, or each mistake is told with its setting and its mend, and no secret."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from hypothesis import example, given
from hypothesis import strategies as st

from immich_vitals.cli import build
from immich_vitals.collectors import COLLECTORS
from immich_vitals.config import ConfigError, load
from immich_vitals.settings import BY_KEY, BY_NAME, OWN, SETTINGS, Setting
from immich_vitals.web import Web, openssl_name, read
from support.certificates import make_certificate
from support.fuzz import JSON, WORDS, fuzzed, like

SECRET = "c0rrect-h0rse"
NAMES = [collector.name for collector in COLLECTORS]
# What the process's own environment can hold: bytes that are no text come as signs of their own, and there is no NUL.
ENVIRONMENT = st.one_of(
    st.sampled_from(
        ("", " ", "\udcfc", "0", "-1", "65536", "9" * 5000, "١", "1h", "1e3s", "/", "a=b", "=", ",", "a=/b,c", "../x",
         "http://[::1", "http://[x]:1", "http://a:b@c", "http://host:99999", "tcp://", "unix://", "postgresql://[::1",
         "postgresql://u:p@h:x/d", "postgresql://h/d?sslmode=odd&host=", "redis://h:99999", "redis://h/x", "unix:///s?db=x",
         "ioredis://", "ioredis://!!!!", "[::]:1", ":99999", "23:00-23:00", "\n", "\x1b[31m", "１２", "{", "é" * 300)
    ),
    st.text(st.characters(exclude_characters="\0", exclude_categories=()), max_size=30),
    st.builds(
        lambda options: "ioredis://" + base64.b64encode(json.dumps(options).encode()).decode(),
        like({"host": "h", "port": 1, "db": 0, "password": SECRET, "name": "m", "path": "/s", "tls": {},
              "sentinels": [{"host": "h", "port": 26379}], "sentinelPassword": SECRET}),
    ),
)  # fmt: skip


def _name(setting: Setting) -> st.SearchStrategy[str]:
    return st.sampled_from([name for name in (setting.name, setting.file_variable) if name])


SOME = st.lists(
    st.sampled_from(SETTINGS).flatmap(lambda setting: st.tuples(_name(setting), ENVIRONMENT)), min_size=1, max_size=8
).map(dict)


@fuzzed
@given(SOME, st.booleans())
@example({"DB_URL": "postgresql://u:c0rrect-h0rse@h/d\udcfc"}, False)
@example({"REDIS_URL": "ioredis://" + base64.b64encode(b"[" * 100_000).decode()}, False)
@example({"DB_PASSWORD": "\udcfc"}, False)
def test_any_environment(environ: dict[str, str], secret: bool) -> None:
    if secret:
        for name in environ:
            setting = next((each for each in SETTINGS if each.name == name), None)
            if setting is not None and setting.secret:
                environ[name] += SECRET
    _taken_or_told(environ)


@fuzzed
@given(
    st.one_of(
        st.binary(max_size=100),
        st.text(max_size=100).map(str.encode),
        st.dictionaries(st.sampled_from(list(BY_KEY)) | WORDS, JSON, max_size=6).map(
            lambda raw: yaml.safe_dump(json.loads(json.dumps(raw))).encode()
        ),
        st.dictionaries(st.sampled_from(list(BY_KEY)), ENVIRONMENT, max_size=6).map(
            lambda raw: json.dumps(raw).encode()
        ),
    )
)
@example(b"media_path: 2001-99-99")
@example(b'media_path: "/a\\0b"')
@example(b'db_password: "a\\0b"\ndb_hostname: "\\0"')
@example(b"[" * 5000)
@example(b"a: &a [*a]\nlisten_address: *a")
@example(b"? [a, b]\n: c")
@example(b"listen_address: !!python/name:os.system")
@example(b"disable: 0x" + b"f" * 5000)
@example(b"disable: " + b"9" * 5000)
@example(b"state_path: !!binary x")
@example(b"log_files: {server: 190:20:30.15, 1: 2, null: 3}")
def test_any_settings_file(folder: Path, text: bytes) -> None:
    file = folder / "settings.yml"
    file.write_bytes(text)
    _taken_or_told({OWN + "CONFIG_FILE": str(file)})


def _taken_or_told(environ: dict[str, str]) -> None:
    """Load them and make all collectors, as at a start."""
    try:
        settings = load({"DOCKER_HOST": "unix:///nowhere", **environ}, {}, NAMES)
        build(settings)
    except ConfigError as error:
        assert error.mistakes
        for mistake in error.mistakes:
            named = mistake.setting
            assert named in BY_NAME or named.removesuffix("_FILE") in BY_NAME or named.startswith("settings.yml: ")
            assert mistake.problem
            assert mistake.mend
        assert SECRET not in str(error)
        assert str(error).encode(errors="backslashreplace")
        return
    assert SECRET not in repr(settings)
    for found in (settings.postgres, settings.redis):
        assert found is None or found.password is None or found.password.value.encode(), "no server can be told this"


@pytest.fixture(scope="module")
def certificates(folder: Path) -> Path:
    make_certificate(folder, "server")
    return folder


HASH = "$2b$04$" + "a" * 53
WEB = like(
    {
        "tls_server_config": {
            "cert_file": "server.pem", "key_file": "server.key", "client_ca_file": "server.pem",
            "client_auth_type": "RequireAndVerifyClientCert", "client_allowed_sans": ["a"], "min_version": "TLS13",
            "max_version": "TLS12", "cipher_suites": ["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"],
            "prefer_server_cipher_suites": True, "curve_preferences": ["X25519"],
        },
        "http_server_config": {"http2": True, "headers": {"X-Frame-Options": "deny"}},
        "basic_auth_users": {"prometheus": HASH},
    }
)  # fmt: skip
HERE = "tls_server_config: {cert_file: server.pem, key_file: server.key"


@fuzzed
@given(
    st.one_of(
        st.binary(max_size=100),
        st.text(max_size=100).map(str.encode),
        WEB.map(lambda raw: yaml.safe_dump(json.loads(json.dumps(raw))).encode()),
    )
)
@example(b"basic_auth_users: {a: 2001-99-99}")
@example(b"[" * 5000)
@example(b"basic_auth_users: " + b"9" * 5000)
@example(HERE.encode() + b', client_ca_file: "\\0"}')
@example(b'tls_server_config: {cert_file: "\\0", key_file: "a"}')
@example(HERE.encode() + b', cipher_suites: ["\\0"]}')
@example(HERE.encode() + b', cipher_suites: ["\\ud800"]}')
@example(HERE.encode() + b", curve_preferences: [[a]]}")
@example(HERE.encode() + b", min_version: TLS10, max_version: TLS11}")
@example(b'http_server_config: {headers: {X-Frame-Options: "a\\r\\nSet-Cookie: b"}}')
@example(b'http_server_config: {headers: {X-Frame-Options: "a\\0"}}')
@example(b"http_server_config: {headers: {X-Frame-Options: [a]}}")
@example(b"1: 2")
@example(b"? [a]\n: b")
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")  # TLS 1.0, which somebody may ask for
def test_any_web_file(certificates: Path, text: bytes) -> None:
    """A web configuration is taken, or each mistake in it is told with its key and its mend."""
    file = certificates / "web.yml"
    file.write_bytes(text)
    try:
        found = read(file)
    except ConfigError as error:
        for mistake in error.mistakes:
            assert mistake.setting == OWN + "WEB_CONFIG_FILE" or mistake.setting.startswith("web.yml")
            assert mistake.problem
            assert mistake.mend
        assert HASH[7:] not in str(error)
        return
    for name, value in found.headers.items():
        assert all(" " <= sign != "\x7f" for sign in name + value), "it would end or split the header"
    assert Web(file).current() is not None


@fuzzed
@given(st.text(max_size=60))
def test_any_cipher_suite(name: str) -> None:
    assert isinstance(openssl_name(name), str)


def test_a_key_with_a_password(certificates: Path) -> None:
    """A private key that wants a password is told as such at once; nobody is asked for the password at a terminal."""
    key = ec.generate_private_key(ec.SECP256R1())
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
    (certificates / "locked.key").write_bytes(locked)
    file = certificates / "locked.yml"
    file.write_text("tls_server_config: {cert_file: server.pem, key_file: locked.key}")
    flags = [f"--web.config.file={file}", "--web.listen-address=127.0.0.1:0"]
    starting = subprocess.Popen(
        [sys.executable, "-m", "immich_vitals", "serve", *flags],
        env={"PATH": os.environ["PATH"]}, stdin=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        assert starting.wait(30) == 2
        assert starting.stderr is not None
        assert b"has a password" in starting.stderr.read()
    finally:
        starting.kill()
        starting.communicate()

from pathlib import Path

import pytest

from immich_vitals.config import ConfigError
from immich_vitals.web import openssl_name, read

GOOD = "$2y$10$" + "a" * 53


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("basic_auth_user: {}", "basic_auth_user: is not known; use one of tls_server_config"),
        ("basic_auth_users: {anna: hunter2}", "not a bcrypt hash"),
        ("basic_auth_users: [anna]", "is not a mapping"),
        (f"basic_auth_users: {{anna: {GOOD.replace('$10$', '$31$')}}}", "its cost"),
        ("tls_server_config: {cert_file: a.pem}", "needs cert_file and key_file"),
        ("tls_server_config: {cert_file: a.pem, key_file: a.key}", "No such file"),
        ("tls_server_config: {cert_fil: a}", "tls_server_config.cert_fil: is not known"),
        ("http_server_config: {headers: {X-Other: 1}}", "X-Other: is not known"),
        ("a: b: c", "line 1"),
        ("[]", "is not a mapping"),
    ],
)
def test_mistakes(tmp_path: Path, text: str, said: str) -> None:
    """Each mistake in the web configuration is named with its place, and no password is shown."""
    file = tmp_path / "web.yml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read(file)
    assert said in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_an_empty_file_is_no_protection(tmp_path: Path) -> None:
    """As with the toolkit, an empty file means no TLS and no passwords."""
    file = tmp_path / "web.yml"
    file.write_text("")
    assert read(file).users == {}
    assert read(file).tls is None


@pytest.mark.parametrize(
    ("standard", "openssl"),
    [
        ("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "ECDHE-RSA-AES128-GCM-SHA256"),
        ("TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256", "ECDHE-ECDSA-CHACHA20-POLY1305"),
        ("TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA", "ECDHE-RSA-AES256-SHA"),
        ("TLS_RSA_WITH_AES_128_GCM_SHA256", "AES128-GCM-SHA256"),
    ],
)
def test_cipher_names(standard: str, openssl: str) -> None:
    """The names in the file are the standard ones; OpenSSL has its own."""
    assert openssl_name(standard) == openssl

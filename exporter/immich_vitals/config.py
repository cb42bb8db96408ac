"""The only place that reads the environment.

`load` turns Immich's own environment names, ours, the flags and an optional YAML file into one `Config`, or raises
`ConfigError` with every mistake at once. The table of settings is in `settings.py`. A settings library would do
the parsing, but the ones looked at either stop at the first mistake of a value, cannot say the mend, or cost 25 MB
of memory (pydantic-settings), a third of all we may use.
"""

import base64
import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from immich_vitals import yaml_file
from immich_vitals.flight import Flight
from immich_vitals.settings import BY_KEY, BY_NAME, COMPONENTS, FOLDERS, OWN, SETTINGS, SSL_MODES, Setting

PATH_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing wrong with the settings: which setting, what is wrong, how to mend it."""

    setting: str
    problem: str
    mend: str

    def __str__(self) -> str:
        return f"{self.setting}: {self.problem}; {self.mend}"


class ConfigError(Exception):
    """The settings do not make sense; `mistakes` are all that were found."""

    def __init__(self, mistakes: Sequence[Mistake]) -> None:
        super().__init__("\n".join(str(mistake) for mistake in mistakes))
        self.mistakes = tuple(mistakes)


@dataclass(frozen=True, slots=True)
class Secret:
    """A text that no log, error or repr shows."""

    value: str = field(repr=False)

    def __str__(self) -> str:
        return "(hidden)"


@dataclass(frozen=True, slots=True)
class PostgresConfig:
    """Where Immich's database is. `options` are further libpq connection parameters (`sslmode`, ...)."""

    host: str
    port: int
    user: str
    password: Secret | None
    database: str
    options: Mapping[str, str]

    @property
    def where(self) -> str:
        """Host and port for people, without login."""
        return self.host if self.host.startswith("/") else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class RedisConfig:
    """Where Immich's Redis is. With `sentinels`, `sentinel_name` is the name of the master to ask them for."""

    host: str = "redis"
    port: int = 6379
    db: int = 0
    username: str | None = None
    password: Secret | None = None
    socket: str | None = None
    tls: bool = False
    tls_ca_file: str | None = None
    tls_verify: bool = True
    sentinels: tuple[tuple[str, int], ...] = ()
    sentinel_name: str | None = None
    sentinel_password: Secret | None = None

    @property
    def where(self) -> str:
        """Address for people, without login."""
        if self.sentinels:
            return "sentinel " + ", ".join(f"{host}:{port}" for host, port in self.sentinels)
        return self.socket or f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class KubernetesConfig:
    """Where the API of a cluster answers. `account` is a folder with `token`, `ca.crt` and `namespace`; `namespace` is
    None when that one counts."""

    api: str
    account: Path
    namespace: str | None


@dataclass(frozen=True, slots=True)
class DockerConfig:
    """Where the Docker API answers, and which containers are Immich's.

    `host` is None when none is set: then `kubernetes` is asked, and where there is none the usual sockets are tried.
    `project` is one of Compose, or a release of Helm. `overrides` maps a component to a pattern
    of container names.
    """

    host: str | None
    tls_verify: bool
    cert_path: Path | None
    expected: tuple[str, ...]
    overrides: Mapping[str, str]
    project: str | None
    usage_interval: float
    kubernetes: KubernetesConfig | None = None


@dataclass(frozen=True, slots=True)
class WatchedPath:
    """A path whose file system is watched, and what it is to Immich."""

    role: str
    path: Path


@dataclass(frozen=True, slots=True)
class LogConfig:
    """Which logs to follow where Docker does not have them, by component, and the user's own signatures."""

    files: Mapping[str, str]
    units: Mapping[str, str]
    catalogue: Path | None


@dataclass(frozen=True, slots=True)
class StorageConfig:
    """`user` is whom Immich writes as, (uid, gid); None: as its container says. `interval` in seconds."""

    interval: float
    user: tuple[int, int] | None
    write_probe: bool


@dataclass(frozen=True, slots=True)
class FileConfig:
    """How database and disk are compared. `quiet` are two minutes of the day, from and to; `rate` in files a second."""

    interval: float
    sample: int
    audit: bool
    rate: int
    quiet: tuple[int, int] | None
    wakes_disks: bool


@dataclass(frozen=True, slots=True)
class ProbeConfig:
    """Addresses without a slash at the end; None: not probed. Intervals in seconds."""

    server: str | None
    external: str | None
    machine_learning: str | None
    api_key: Secret | None
    interval: float
    upload_limit_interval: float
    ca_file: Path | None


@dataclass(frozen=True, slots=True)
class BackupConfig:
    """Globs of backups beside Immich's own dumps; `rate` in bytes a second."""

    database: tuple[str, ...]
    media: tuple[str, ...]
    restore_test: Path | None
    interval: float
    rate: float


@dataclass(frozen=True, slots=True)
class PatrolConfig:
    """Whether all pages of Immich's database are read, how many in a second, how many seconds lie between the
    beginnings of two passes, and whether amcheck looks through the indexes after each."""

    enabled: bool
    rate: int
    interval: float
    amcheck: bool = False


@dataclass(frozen=True, slots=True)
class WebConfig:
    """What the web server listens on. `config_file` is the exporter toolkit's web configuration file."""

    listen: tuple[str, ...]
    config_file: Path | None
    telemetry_path: str


@dataclass(frozen=True, slots=True)
class Config:
    """All settings, checked."""

    postgres: PostgresConfig | None
    redis: RedisConfig | None
    docker: DockerConfig
    paths: tuple[WatchedPath, ...]
    path_map: Mapping[str, Path]
    state: Path | None
    log: LogConfig
    storage: StorageConfig
    file: FileConfig
    probe: ProbeConfig
    backup: BackupConfig
    patrol: PatrolConfig
    disabled: frozenset[str]
    library_interval: float
    version_interval: float
    web: WebConfig
    log_level: str


def load(
    environ: Mapping[str, str],
    flags: Mapping[str, Sequence[str]] | None = None,
    collectors: Sequence[str] = (),
) -> Config:
    """The settings from flags, environment and YAML file, in this order of precedence.

    `flags` maps a setting's name to the values given on the command line, `collectors` are the known names of
    collectors. Raises `ConfigError` with every mistake found.
    """
    values = _Values(environ, flags or {})
    config = Config(
        postgres=_postgres(values),
        redis=_redis(values),
        docker=DockerConfig(
            host=_docker_host(values),
            tls_verify=values.switch("DOCKER_TLS_VERIFY"),
            cert_path=values.path("DOCKER_CERT_PATH"),
            expected=values.listed(OWN + "EXPECT", COMPONENTS),
            overrides=values.mapping(OWN + "CONTAINERS", COMPONENTS),
            project=values.text(OWN + "COMPOSE_PROJECT") or None,
            usage_interval=values.duration(OWN + "CONTAINER_USAGE_INTERVAL"),
            kubernetes=_kubernetes(values),
        ),
        paths=_paths(values),
        path_map=_path_map(values),
        state=_state(values),
        log=LogConfig(
            files=values.mapping(OWN + "LOG_FILES", COMPONENTS),
            units=values.mapping(OWN + "LOG_UNITS", COMPONENTS),
            catalogue=values.path(OWN + "LOG_CATALOGUE"),
        ),
        storage=StorageConfig(
            interval=values.duration(OWN + "STORAGE_INTERVAL"),
            user=_user(values),
            write_probe=values.switch(OWN + "WRITE_PROBE"),
        ),
        file=FileConfig(
            interval=values.duration(OWN + "FILE_INTERVAL"),
            sample=values.number(OWN + "FILE_SAMPLE", 1, 100_000),
            audit=values.switch(OWN + "FILE_AUDIT"),
            rate=values.number(OWN + "FILE_RATE", 1, 10_000),
            quiet=_quiet_hours(values),
            wakes_disks=values.switch(OWN + "FILE_WAKES_DISKS"),
        ),
        probe=ProbeConfig(
            server=_url(values, OWN + "SERVER_URL"),
            external=_url(values, OWN + "EXTERNAL_URL"),
            machine_learning=_url(values, OWN + "MACHINE_LEARNING_URL"),
            api_key=values.secret(OWN + "API_KEY"),
            interval=values.duration(OWN + "PROBE_INTERVAL"),
            upload_limit_interval=values.duration(OWN + "UPLOAD_LIMIT_INTERVAL"),
            ca_file=values.path(OWN + "PROBE_CA_FILE"),
        ),
        backup=BackupConfig(
            database=values.listed(OWN + "DATABASE_BACKUPS"),
            media=values.listed(OWN + "MEDIA_BACKUPS"),
            restore_test=values.path(OWN + "RESTORE_TEST_FILE"),
            interval=values.duration(OWN + "BACKUP_INTERVAL"),
            rate=1e6 * values.number(OWN + "BACKUP_RATE", 1, 10_000),
        ),
        patrol=PatrolConfig(
            enabled=values.switch(OWN + "PAGE_PATROL"),
            rate=values.number(OWN + "PAGE_PATROL_RATE", 1, 100_000),
            interval=values.duration(OWN + "PAGE_PATROL_INTERVAL"),
            amcheck=values.switch(OWN + "AMCHECK"),
        ),
        disabled=frozenset(values.listed(OWN + "DISABLE", tuple(collectors) or None)),
        library_interval=values.duration(OWN + "LIBRARY_INTERVAL"),
        version_interval=values.duration(OWN + "VERSION_INTERVAL"),
        web=WebConfig(
            listen=_listen(values),
            config_file=values.path(OWN + "WEB_CONFIG_FILE"),
            telemetry_path=_telemetry_path(values),
        ),
        log_level=values.choice(OWN + "LOG_LEVEL"),
    )
    if values.mistakes:
        raise ConfigError(values.mistakes)
    return config


class _Values:
    """The raw values and the mistakes met on the way. Each getter gives a usable value even after a mistake, so
    that one run finds them all."""

    def __init__(self, environ: Mapping[str, str], flags: Mapping[str, Sequence[str]]) -> None:
        self.mistakes: list[Mistake] = []
        self._raw: dict[str, str | list[str] | dict[str, str]] = {}
        file = (flags.get(OWN + "CONFIG_FILE") or [environ.get(OWN + "CONFIG_FILE", "")])[0]
        if file:
            self._read_yaml(Path(file))
        self._read_environ(environ)
        for name, given in flags.items():
            self._raw[name] = list(given) if BY_NAME[name].kind == "list" else given[-1]

    def mistake(self, setting: str, problem: str, mend: str) -> None:
        self.mistakes.append(Mistake(setting, problem, mend))

    def given(self, *names: str) -> bool:
        """Whether any of the settings was set by somebody."""
        return any(name in self._raw for name in names)

    def text(self, name: str) -> str:
        raw = self._raw.get(name, BY_NAME[name].default)
        if isinstance(raw, str):
            return raw
        self._wrong(name, raw, "is not a text", "give one value, not a list")
        return BY_NAME[name].default

    def secret(self, name: str) -> Secret | None:
        text = self.text(name)
        return Secret(text) if text else None

    def number(self, name: str, lowest: int, highest: int) -> int:
        text = self.text(name)
        if re.fullmatch(r"\d{1,9}", text) and lowest <= int(text) <= highest:
            return int(text)
        self._wrong(name, text, "is not a number in range", f"give a whole number from {lowest} to {highest}")
        return lowest

    def port(self, name: str) -> int:
        return self.number(name, 1, 65535)

    def duration(self, name: str) -> float:
        """Seconds, at least one."""
        text = self.text(name)
        parts = re.fullmatch(r"(\d{1,6}(?:\.\d+)?)\s*(ms|s|m|h|d|)", text)
        if parts:
            seconds = float(parts[1]) * {"ms": 0.001, "": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[parts[2]]
            if seconds >= 1:
                return seconds
        self._wrong(name, text, "is not a time of at least one second", "write for example 30s, 5m or 6h")
        return 60.0

    def path(self, name: str) -> Path | None:
        text = self.text(name)
        return Path(text) if text else None

    def switch(self, name: str) -> bool:
        text = self.text(name).lower()
        if text in ("1", "true", "yes", "on"):
            return True
        if text not in ("0", "false", "no", "off", ""):
            self._wrong(name, text, "is neither yes nor no", "write true or false")
        return False

    def choice(self, name: str) -> str:
        text, choices = self.text(name), BY_NAME[name].choices
        if text in choices:
            return text
        self._wrong(name, text, "is not one of the choices", _did_you_mean(text, choices))
        return BY_NAME[name].default

    def listed(self, name: str, choices: Sequence[str] | None = None) -> tuple[str, ...]:
        """The items of a list, written with commas or as a YAML list."""
        raw = self._raw.get(name, BY_NAME[name].default)
        if isinstance(raw, dict):
            self._wrong(name, raw, "is not a list", "write the items as a list")
            return ()
        items = [item.strip() for item in (raw.split(",") if isinstance(raw, str) else raw)]
        items = [item for item in items if item]
        for item in items:
            if choices is not None and item not in choices:
                self._wrong(name, item, "is not known", _did_you_mean(item, choices))
        return tuple(dict.fromkeys(items))

    def mapping(self, name: str, keys: Sequence[str] | None) -> dict[str, str]:
        """`key=value` pairs, written with commas or as a YAML mapping; without `keys`, any key will do."""
        raw = self._raw.get(name, BY_NAME[name].default)
        if not isinstance(raw, dict):
            pairs = self.listed(name)
            raw = {}
            for pair in pairs:
                key, equals, value = pair.partition("=")
                if not equals or not value.strip():
                    example = f"{keys[0]}=name" if keys else "/photos=/mnt/photos"
                    self._wrong(name, pair, "is not of the form key=value", f"write for example {example}")
                else:
                    raw[key.strip()] = value.strip()
        for key in raw:
            if keys is not None and key not in keys:
                self._wrong(name, key, "is not known", _did_you_mean(key, keys))
        return raw

    def _wrong(self, name: str, value: object, problem: str, mend: str) -> None:
        shown = "the value (not shown)" if BY_NAME[name].secret else repr(value)
        self.mistake(name, f"{shown} {problem}", mend)

    def _read_environ(self, environ: Mapping[str, str]) -> None:
        files = {setting.file_variable: setting for setting in SETTINGS if setting.file_variable}
        for setting in SETTINGS:
            value = environ.get(setting.name)
            if value and setting.kind in _OF_TEXT and not _is_utf8(value):
                self.mistake(setting.name, "the value (not shown) is not UTF-8 text", "write it in UTF-8")
            elif value:
                self._raw[setting.name] = value
        for variable, setting in files.items():
            if variable and environ.get(variable):
                self._read_secret_file(variable, setting, environ)
        for name in sorted(environ):
            if name.startswith(OWN) and name not in BY_NAME and name not in files and not _SERVICE_LINK.fullmatch(name):
                self.mistake(name, "there is no such setting", _did_you_mean(name, [*BY_NAME, *filter(None, files)]))

    def _read_secret_file(self, variable: str, setting: Setting, environ: Mapping[str, str]) -> None:
        path = environ[variable]
        shown = (
            repr(path) if path.startswith(("/", "./", "../")) else "the value (not shown)"
        )  # may be the secret itself
        if environ.get(setting.name):
            self.mistake(variable, f"{setting.name} is set as well", "unset one of the two")
            return
        try:
            text = Path(path).read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeError) as error:
            self.mistake(variable, f"cannot read {shown}: {_reason(error)}", "name a file this user can read")
            return
        if text:
            self._raw[setting.name] = text
        else:
            self.mistake(variable, f"{shown} is empty", f"write the value of {setting.name} into it")

    def _read_yaml(self, path: Path) -> None:
        setting = OWN + "CONFIG_FILE"
        try:
            loaded = yaml_file.read(path)
        except yaml_file.NotUsable as error:
            self.mistake(setting, f"{str(path)!r} {error.problem}", error.mend)
            return
        if loaded is None:
            return
        if not isinstance(loaded, dict):
            self.mistake(setting, f"{str(path)!r} is not a mapping of settings", "write lines like `db_hostname: db`")
            return
        for key, value in loaded.items():
            found = BY_KEY.get(str(key))
            if found is None or found.name == setting:
                self.mistake(f"{path.name}: {key}", "there is no such setting", _did_you_mean(str(key), list(BY_KEY)))
            elif value is not None:
                self._take_yaml(found, value)

    def _take_yaml(self, setting: Setting, value: object) -> None:
        if isinstance(value, bool):
            self._raw[setting.name] = "true" if value else "false"
        elif isinstance(value, dict):
            self._raw[setting.name] = {str(key): str(item) for key, item in value.items()}
        elif isinstance(value, list):
            self._raw[setting.name] = [str(item) for item in value]
        else:
            self._raw[setting.name] = str(value)


# What is no path of a file, which Linux has of any bytes.
_OF_TEXT = ("text", "secret", "choice", "port", "number", "duration", "switch")


def _is_utf8(value: str) -> bool:
    """False for a variable with other bytes in it, for which Python has signs of its own."""
    return value.isascii() or value == value.encode(errors="replace").decode()


# Kubernetes tells the containers of a namespace about each Service in it, and ours is called immich-vitals.
_SERVICE_LINK = re.compile(OWN + r"(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT(?:_\d+_(?:TCP|UDP)(?:_\w+)?)?)")


_DB_NAMES = tuple(name for name in BY_NAME if name.startswith("DB_") and name != "DB_DATA_LOCATION")
_REDIS_NAMES = tuple(name for name in BY_NAME if name.startswith("REDIS_"))


def _postgres(values: _Values) -> PostgresConfig | None:
    own = (OWN + "DB_USERNAME", OWN + "DB_PASSWORD")
    if not values.given(*own, *_DB_NAMES):
        return None
    mode = values.choice("DB_SSL_MODE")
    base = PostgresConfig(
        host=_host(values, "DB_HOSTNAME", "DB_URL"),
        port=values.port("DB_PORT"),
        user=values.text("DB_USERNAME"),
        password=values.secret("DB_PASSWORD"),
        database=values.text("DB_DATABASE_NAME"),
        options={"sslmode": mode},
    )
    if values.given("DB_URL"):
        base = _from_db_url(values, values.text("DB_URL"), base)
    user, password = values.text(own[0]), values.secret(own[1])
    return PostgresConfig(
        base.host, base.port, user or base.user, password if user or password else base.password, base.database,
        base.options,
    )  # fmt: skip


def _from_db_url(values: _Values, url: str, default: PostgresConfig) -> PostgresConfig:
    mend = "write postgresql://user:password@host:port/database, with special characters percent-encoded"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        values.mistake("DB_URL", "the value (not shown) is not a URL with a port from 1 to 65535", mend)
        return default
    if parts.scheme not in ("postgresql", "postgres"):
        values.mistake("DB_URL", "the value (not shown) does not start with postgresql://", mend)
        return default
    query = {name: found[-1] for name, found in parse_qs(parts.query).items()}
    # Others are for Immich's own client (`uselibpqcompat`, pool sizes); libpq would refuse them.
    libpq_knows = ("sslmode", "sslrootcert", "sslcert", "sslkey")
    options: dict[str, str] = {name: query[name] for name in libpq_knows if name in query}
    if options.get("sslmode") == "no-verify":  # Immich's client knows this one, libpq calls it require
        options["sslmode"] = "require"
    if options.get("sslmode", "prefer") not in SSL_MODES:
        values.mistake("DB_URL", "its sslmode is not known", f"use one of {', '.join(SSL_MODES)}")
    return PostgresConfig(
        host=query.get("host") or unquote(parts.hostname or "") or default.host,
        port=port or 5432,
        user=unquote(parts.username or "") or "postgres",
        password=Secret(unquote(parts.password)) if parts.password else None,
        database=unquote(parts.path.lstrip("/")) or "immich",
        options={**default.options, **options},
    )


def _redis(values: _Values) -> RedisConfig | None:
    own = (OWN + "REDIS_USERNAME", OWN + "REDIS_PASSWORD")
    # Immich's stock .env names no Redis at all: beside a configured database its defaults hold.
    if not values.given(*own, *_REDIS_NAMES, *_DB_NAMES):
        return None
    if values.given("REDIS_URL"):
        base = _from_redis_url(values, values.text("REDIS_URL"))
    else:
        base = RedisConfig(
            host=_host(values, "REDIS_HOSTNAME", "REDIS_URL"),
            port=values.port("REDIS_PORT"),
            db=values.number("REDIS_DBINDEX", 0, 1_000_000),
            username=values.text("REDIS_USERNAME") or None,
            password=values.secret("REDIS_PASSWORD"),
            socket=values.text("REDIS_SOCKET") or None,
        )
    user, password = values.text(own[0]), values.secret(own[1])
    if user or password:
        return _replace_login(base, user or None, password)
    return base


def _replace_login(base: RedisConfig, username: str | None, password: Secret | None) -> RedisConfig:
    return RedisConfig(
        base.host, base.port, base.db, username, password, base.socket, base.tls, base.tls_ca_file, base.tls_verify,
        base.sentinels, base.sentinel_name, base.sentinel_password,
    )  # fmt: skip


def _from_redis_url(values: _Values, url: str) -> RedisConfig:
    scheme = url.split("://", 1)[0]
    if scheme == "ioredis":
        return _from_ioredis(values, url.removeprefix("ioredis://"))
    mend = "write redis://user:password@host:port/0, rediss://..., unix:///path or Immich's ioredis:// form"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        values.mistake("REDIS_URL", "the value (not shown) is not a URL with a port from 1 to 65535", mend)
        return RedisConfig()
    if scheme not in ("redis", "rediss", "unix"):
        values.mistake("REDIS_URL", "the value (not shown) has an unknown beginning", mend)
        return RedisConfig()
    query = {name: found[-1] for name, found in parse_qs(parts.query).items()}
    db = query.get("db") or ("" if scheme == "unix" else parts.path.lstrip("/")) or "0"
    if not re.fullmatch(r"\d{1,6}", db):
        values.mistake("REDIS_URL", "its database is not a number", mend)
        db = "0"
    return RedisConfig(
        host=parts.hostname or "localhost",
        port=port or 6379,
        db=int(db),
        username=unquote(parts.username or "") or None,
        password=Secret(unquote(parts.password)) if parts.password else None,
        socket=unquote(parts.path) if scheme == "unix" else None,
        tls=scheme == "rediss",
    )


def _from_ioredis(values: _Values, encoded: str) -> RedisConfig:
    mend = "encode the JSON options of ioredis with base64, as Immich's documentation shows"
    try:
        options = json.loads(base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=None, validate=True))
    except (ValueError, RecursionError):
        values.mistake("REDIS_URL", "what follows ioredis:// (not shown) is not base64 of JSON", mend)
        return RedisConfig()
    if not isinstance(options, dict):
        values.mistake("REDIS_URL", "what follows ioredis:// (not shown) is not a JSON object", mend)
        return RedisConfig()

    def text(name: str) -> str | None:
        value = options.get(name)
        return None if value is None or value == "" else str(value)

    def whole(value: object, default: int, name: str) -> int:
        if value is None:
            return default
        if isinstance(value, int | str) and re.fullmatch(r"\d{1,6}", str(value)):
            return int(value)
        values.mistake("REDIS_URL", f"its {name} is not a whole number", mend)
        return default

    password, sentinel_password = text("password"), text("sentinelPassword")
    sentinels = options.get("sentinels") or []
    if not isinstance(sentinels, list) or not all(isinstance(item, dict) and item.get("host") for item in sentinels):
        values.mistake("REDIS_URL", "its sentinels are not a list of host and port", mend)
        sentinels = []
    if sentinels and not text("name"):
        values.mistake("REDIS_URL", "it lists sentinels and no name", "add the name of the master, such as mymaster")
    tls = options.get("tls")
    return RedisConfig(
        host=text("host") or "localhost",
        port=whole(options.get("port"), 6379, "port"),
        db=whole(options.get("db"), 0, "db"),
        username=text("username"),
        password=Secret(password) if password else None,
        socket=text("path"),
        tls=bool(tls) or tls == {},
        tls_verify=not (isinstance(tls, dict) and tls.get("rejectUnauthorized") is False),
        sentinels=tuple((str(item["host"]), whole(item.get("port"), 26379, "sentinel port")) for item in sentinels),
        sentinel_name=text("name"),
        sentinel_password=Secret(sentinel_password) if sentinel_password else None,
    )


def _host(values: _Values, name: str, url_name: str) -> str:
    """A host name, or for Postgres the folder of a socket. What looks like an address may have a password in it."""
    host = values.text(name)
    if "://" in host or "@" in host[1:]:
        values.mistake(name, "the value (not shown) is an address, not a host name", f"give it as {url_name}")
    return host


def _docker_host(values: _Values) -> str | None:
    host = values.text("DOCKER_HOST")
    if host and ("@" in host or not re.match(r"(unix|tcp|http|https)://[^/]*/?", host)):
        shown = "the value (not shown) has a login in it, or" if "@" in host else repr(host)
        values.mistake(
            "DOCKER_HOST",
            f"{shown} is not an address of a Docker API",
            "write unix:///path or tcp://host:port",
        )
    return host or None


def _kubernetes(values: _Values) -> KubernetesConfig | None:
    """As set, else that of the cluster we are in: Kubernetes tells each container where it is."""
    name = OWN + "KUBERNETES_API"
    api, host = values.text(name).rstrip("/"), values.text("KUBERNETES_SERVICE_HOST")
    namespace = values.text(OWN + "KUBERNETES_NAMESPACE")
    if namespace and not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", namespace):
        values.mistake(OWN + "KUBERNETES_NAMESPACE", f"{namespace!r} is no namespace", "see `kubectl get namespaces`")
    if api and not re.fullmatch(r"https?://([-.\w]+|\[[0-9a-fA-F:.]+\])(:[1-9]\d{0,4})?(/[-.\w/]*)?", api):
        values.mistake(name, "the value is not the address of an API server", "write for example https://10.0.0.1:6443")
    if not api and not host:
        return None
    if not api:
        api = f"https://{f'[{host}]' if ':' in host else host}:{values.port('KUBERNETES_SERVICE_PORT')}"
    return KubernetesConfig(api, Path(values.text(OWN + "KUBERNETES_ACCOUNT_PATH")), namespace or None)


def _paths(values: _Values) -> tuple[WatchedPath, ...]:
    media = values.path(OWN + "MEDIA_PATH")
    if media is None:
        named = [path for path in (values.path("IMMICH_MEDIA_LOCATION"), values.path("UPLOAD_LOCATION")) if path]
        media = next((path for path in named if _is_there(path)), named[0] if named else None)
    found: dict[str, Path] = {} if media is None else {"media": media}
    for folder in FOLDERS:
        own = values.path(f"{OWN}{folder.upper()}_PATH")
        if own:
            found[folder] = own
        elif media is not None:
            found[folder] = media / folder.replace("_", "-")
    database = values.path(OWN + "DATABASE_PATH")
    if database is None:
        host_path = values.path("DB_DATA_LOCATION")
        database = host_path if host_path and host_path.is_absolute() and _is_there(host_path) else None
    others = {
        "database": database,
        "docker": values.path(OWN + "DOCKER_PATH"),
        "model_cache": values.path(OWN + "MODEL_CACHE_PATH"),
        "tmp": values.path(OWN + "TMP_PATH"),
    }
    found.update({role: path for role, path in others.items() if path})
    watched = [WatchedPath(role, path) for role, path in found.items()]
    watched.extend(WatchedPath("external", Path(path)) for path in values.listed(OWN + "EXTERNAL_PATHS"))
    return tuple(watched)


def _is_there(path: Path) -> bool:
    """What does not answer, as on a dead file server, is there, and so is what we may not look at: the collectors say
    more. The exporter must start without it."""
    try:
        return Flight[bool]("path").join_or_start(path.exists).result(PATH_SECONDS)
    except (TimeoutError, OSError):
        return True


def _state(values: _Values) -> Path | None:
    """A folder that hangs would hold up the start, since what is kept in it is read then."""
    name = OWN + "STATE_PATH"
    path = values.path(name)
    if path is None:
        return None
    try:
        Flight[bool]("path").join_or_start(path.exists).result(PATH_SECONDS)
    except TimeoutError:
        values.mistake(
            name, f"{str(path)!r} does not answer", "see whether its disk is there, or name a folder on another"
        )
    except OSError:
        pass  # the collectors say so, each for itself
    return path


def _path_map(values: _Values) -> dict[str, Path]:
    name = OWN + "PATH_MAP"
    found = values.mapping(name, None)
    for inside, here in found.items():
        if not inside.startswith("/") or not here.startswith("/"):
            values.mistake(name, f"{inside}={here} has a path without a leading slash", "write both from the root on")
    return {inside.rstrip("/") or "/": Path(here) for inside, here in found.items()}


def _user(values: _Values) -> tuple[int, int] | None:
    name = OWN + "MEDIA_USER"
    text = values.text(name)
    found = re.fullmatch(r"(\d{1,9}):(\d{1,9})", text)
    if text and not found:
        values.mistake(name, f"{text!r} is not a user and a group", "write two numbers, as 1000:1000; `id` prints them")
    return (int(found[1]), int(found[2])) if found else None


def _quiet_hours(values: _Values) -> tuple[int, int] | None:
    """Minutes of the day, from and to; a span may go over midnight."""
    name = OWN + "FILE_QUIET_HOURS"
    text = values.text(name)
    found = re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)\s*-\s*([01]?\d|2[0-4]):([0-5]\d)", text)
    if not found:
        if text:
            values.mistake(name, f"{text!r} is not a span of hours", "write for example 23:00-06:30")
        return None
    begin, end = int(found[1]) * 60 + int(found[2]), int(found[3]) * 60 + int(found[4])
    if end > 1440 or begin == end:
        values.mistake(name, f"{text!r} is not a span of hours", "write for example 23:00-06:30")
    return begin, end


def _url(values: _Values, name: str) -> str | None:
    """An address without a slash or `/api` at its end."""
    text = values.text(name)
    if not text:
        return None
    mend = "write for example http://immich-server:2283 or https://photos.example.org"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        values.mistake(name, "its port is not a number from 1 to 65535", mend)
        return None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        values.mistake(name, "the value is not an address that begins with http:// or https://", mend)
        return None
    if parts.username is not None or parts.query or parts.fragment:
        values.mistake(name, "the value has a login, a query or a fragment in it", mend)
        return None
    return text.rstrip("/").removesuffix("/api")


def _listen(values: _Values) -> tuple[str, ...]:
    name = OWN + "LISTEN_ADDRESS"
    addresses = values.listed(name)
    for address in addresses:
        parts = re.fullmatch(r"(\[[0-9a-fA-F:.%\w]+\]|[^:\[\]]*):(\d{1,5})", address)
        if parts is None or not 0 <= int(parts[2]) <= 65535:
            values.mistake(name, f"{address!r} is not an address to listen on", "write host:port, [v6]:port or :port")
    if not addresses:
        values.mistake(name, "there is no address in it", "write for example :12283")
    return addresses


def _telemetry_path(values: _Values) -> str:
    path = values.text(OWN + "TELEMETRY_PATH")
    if not re.fullmatch(r"/[-\w./]*", path) or path in ("/", "/healthz", "/readyz"):
        values.mistake(
            OWN + "TELEMETRY_PATH",
            f"{path!r} cannot be the path of the metrics",
            "write for example /metrics",
        )
    return path


def _did_you_mean(given: str, choices: Sequence[str]) -> str:
    close = difflib.get_close_matches(given, choices, n=1)
    if close:
        return f"did you mean {close[0]}?"
    return f"use one of {', '.join(choices)}" if len(choices) <= 20 else "see `immich-vitals config`"


def _reason(error: Exception) -> str:
    return (error.strerror or type(error).__name__) if isinstance(error, OSError) else "it is not UTF-8 text"

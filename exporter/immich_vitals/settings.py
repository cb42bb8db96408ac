"""Every setting: its name, what it means, its form and its default. The reference in docs/configuration.md is
generated from this table, and `config.py` reads nothing that is not in it."""

from dataclasses import dataclass
from typing import Literal

OWN = "IMMICH_VITALS_"

Kind = Literal["text", "secret", "port", "number", "duration", "path", "list", "mapping", "switch", "choice", "file"]


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting. `name` is the environment variable; in the YAML file it is `key`."""

    name: str
    kind: Kind
    help: str
    default: str = ""
    group: str = ""
    choices: tuple[str, ...] = ()
    may_be_file: bool = False
    flag: str = ""

    @property
    def key(self) -> str:
        """The name in the YAML file: lower case, without our own prefix unless it is needed to tell two apart."""
        if self.name.startswith(OWN) and not self.name.startswith((OWN + "DB_", OWN + "REDIS_")):
            return self.name.removeprefix(OWN).lower()
        return self.name.lower()

    @property
    def secret(self) -> bool:
        return self.kind == "secret"

    @property
    def file_variable(self) -> str | None:
        """The variable that names a file which holds the value, if there is one."""
        return self.name + "_FILE" if self.secret or self.may_be_file else None


COMPONENTS = ("server", "microservices", "machine_learning", "database", "redis", "proxy")
FOLDERS = ("upload", "library", "thumbs", "encoded_video", "profile", "backups")
SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")

_DB = "Postgres (Immich's own names)"
_REDIS = "Redis or Valkey (Immich's own names)"
_OWN_LOGIN = "Logins of our own, with fewer rights"
_DOCKER = "Docker or Podman"
_KUBERNETES = "Kubernetes"
_PATHS = "Paths, as this process sees them"
_LOGS = "Logs"
_FILES = "Folders and files"
_PROBES = "Probes"
_BACKUPS = "Backups"
_PATROL = "Page patrol of Postgres"
_WORK = "What runs, and how often"
_WEB = "Web"

SETTINGS: tuple[Setting, ...] = (
    Setting("DB_HOSTNAME", "text", "Host name or address of Postgres, or the folder of its unix socket.", "database", _DB, may_be_file=True),
    Setting("DB_PORT", "port", "Port of Postgres.", "5432", _DB),
    Setting("DB_USERNAME", "text", "Role to log in with.", "postgres", _DB, may_be_file=True),
    Setting("DB_PASSWORD", "secret", "Password of that role.", "postgres", _DB),
    Setting("DB_DATABASE_NAME", "text", "Immich's database.", "immich", _DB, may_be_file=True),
    Setting("DB_URL", "secret", "All five in one, as `postgresql://user:password@host:port/database`; the five are then not read.", "", _DB),
    Setting("DB_SSL_MODE", "choice", "Whether to use TLS towards Postgres.", "prefer", _DB, choices=SSL_MODES),
    Setting("REDIS_HOSTNAME", "text", "Host name or address of Redis.", "redis", _REDIS),
    Setting("REDIS_PORT", "port", "Port of Redis.", "6379", _REDIS),
    Setting("REDIS_DBINDEX", "number", "Number of the Redis database.", "0", _REDIS),
    Setting("REDIS_USERNAME", "text", "ACL user.", "", _REDIS),
    Setting("REDIS_PASSWORD", "secret", "Password.", "", _REDIS),
    Setting("REDIS_SOCKET", "path", "Unix socket of Redis; host and port are then not read.", "", _REDIS),
    Setting("REDIS_URL", "secret", "Immich's form `ioredis://` with base64 of JSON (Sentinel and TLS too), or `redis://`, `rediss://`, `unix://`; the others are then not read.", "", _REDIS),
    Setting(OWN + "DB_USERNAME", "text", "Role for this exporter in place of Immich's; see `immich-vitals grants`.", "", _OWN_LOGIN),
    Setting(OWN + "DB_PASSWORD", "secret", "Password of that role.", "", _OWN_LOGIN),
    Setting(OWN + "REDIS_USERNAME", "text", "ACL user for this exporter in place of Immich's.", "", _OWN_LOGIN),
    Setting(OWN + "REDIS_PASSWORD", "secret", "Password of that user.", "", _OWN_LOGIN),
    Setting("DOCKER_HOST", "text", "Where the Docker API answers: `unix:///path`, or `tcp://host:port` of a filtering proxy. Unset: in Kubernetes the cluster's API is asked, elsewhere the usual sockets of Docker and Podman are tried.", "", _DOCKER),
    Setting("DOCKER_TLS_VERIFY", "switch", "Use TLS towards a `tcp://` Docker host.", "false", _DOCKER),
    Setting("DOCKER_CERT_PATH", "path", "Folder with `ca.pem`, `cert.pem` and `key.pem` for that.", "", _DOCKER),
    Setting(OWN + "EXPECT", "list", "Components that must have a container here; one that is missing is reported as missing.", "server, machine_learning, database, redis", _DOCKER, choices=COMPONENTS),
    Setting(OWN + "CONTAINERS", "mapping", "Which container is which component where names and labels do not tell, as `database=my-pg, proxy=swag`; `*` and `?` match. A component named here is found by this name alone.", "", _DOCKER, choices=COMPONENTS),
    Setting(OWN + "COMPOSE_PROJECT", "text", "Compose project of Immich, where several Immich share one Docker; on Kubernetes the release of Helm (label `app.kubernetes.io/instance`).", "", _DOCKER),
    Setting("KUBERNETES_SERVICE_HOST", "text", "Address of the cluster's API. Kubernetes sets it in every container; where DOCKER_HOST is not set, pods are then read in place of Docker's containers.", "", _KUBERNETES),
    Setting("KUBERNETES_SERVICE_PORT", "port", "Its port; set by Kubernetes as well.", "443", _KUBERNETES),
    Setting(OWN + "KUBERNETES_API", "text", "Another address of that API, as `https://10.0.0.1:6443`: also from outside of the cluster.", "", _KUBERNETES),
    Setting(OWN + "KUBERNETES_ACCOUNT_PATH", "path", "Folder with `token`, `ca.crt` and `namespace` of a service account.", "/var/run/secrets/kubernetes.io/serviceaccount", _KUBERNETES),
    Setting(OWN + "KUBERNETES_NAMESPACE", "text", "Immich's namespace, where it is not the one of the service account.", "", _KUBERNETES),
    Setting("IMMICH_MEDIA_LOCATION", "path", "Immich's media folder.", "", _PATHS),
    Setting("UPLOAD_LOCATION", "path", "Immich's media folder on the host; read when IMMICH_MEDIA_LOCATION is not set or does not exist here.", "", _PATHS),
    Setting("DB_DATA_LOCATION", "path", "Postgres' data directory on the host.", "", _PATHS),
    Setting(OWN + "MEDIA_PATH", "path", "The media folder, where this process sees it elsewhere.", "", _PATHS),
    *(
        Setting(f"{OWN}{folder.upper()}_PATH", "path", f"Folder `{folder.replace('_', '-')}`, where it is not inside the media folder.", "", _PATHS)
        for folder in FOLDERS
    ),
    Setting(OWN + "DATABASE_PATH", "path", "Postgres' data directory, where this process sees it elsewhere.", "", _PATHS),
    Setting(OWN + "DOCKER_PATH", "path", "Docker's data root (often `/var/lib/docker`), to watch its disk.", "", _PATHS),
    Setting(OWN + "MODEL_CACHE_PATH", "path", "Model cache of machine learning.", "", _PATHS),
    Setting(OWN + "TMP_PATH", "path", "Folder for temporary files of the server or the proxy.", "", _PATHS),
    Setting(OWN + "EXTERNAL_PATHS", "list", "Folders of external libraries.", "", _PATHS),
    Setting(OWN + "PATH_MAP", "mapping", "Where this process sees folders that the server's container sees elsewhere, as `/mnt/photos=/external/photos`; the media folder needs no line.", "", _PATHS),
    Setting(OWN + "STATE_PATH", "path", "A folder of our own that we may write to. It keeps over a restart the place in logs and audits, and which disk the photos were on; without it all begin anew.", "", _PATHS),
    Setting(OWN + "LOG_FILES", "mapping", "Log files to follow where there is no Docker, as `server=/var/log/immich/server.log`.", "", _LOGS, choices=COMPONENTS),
    Setting(OWN + "LOG_UNITS", "mapping", "Units of the systemd journal to follow where there is no Docker, as `server=immich-server.service`.", "", _LOGS, choices=COMPONENTS),
    Setting(OWN + "LOG_CATALOGUE", "file", "A YAML file with signatures of your own, in the form of ours.", "", _LOGS),
    Setting(OWN + "STORAGE_INTERVAL", "duration", "How often Immich's folders are looked at.", "5m", _FILES),
    Setting(OWN + "MEDIA_USER", "text", "Whom Immich writes its files as, `uid:gid`; unset: as the server's container says, and not known without Docker.", "", _FILES),
    Setting(OWN + "WRITE_PROBE", "switch", "Write and remove one small file in the media folder at each look. Needs it mounted writable; off by default, since we write nothing to Immich otherwise.", "false", _FILES),
    Setting(OWN + "FILE_INTERVAL", "duration", "How often a sample of assets is compared with the files on disk.", "6h", _FILES),
    Setting(OWN + "FILE_SAMPLE", "number", "How many assets are in a sample.", "200", _FILES),
    Setting(OWN + "FILE_AUDIT", "switch", "Compare every file in the database with the disk, slowly and over and over.", "false", _FILES),
    Setting(OWN + "FILE_RATE", "number", "Files looked at in a second, at most.", "20", _FILES),
    Setting(OWN + "FILE_QUIET_HOURS", "text", "Hours in which no file is looked at, as `23:00-06:30`, in the time zone of TZ.", "", _FILES),
    Setting(OWN + "FILE_WAKES_DISKS", "switch", "Look at files also on a disk that nobody has read for ten minutes and that may sleep.", "false", _FILES),
    Setting(OWN + "SERVER_URL", "text", "Immich's own address, beside every proxy, as `http://immich-server:2283`.", "", _PROBES),
    Setting(OWN + "EXTERNAL_URL", "text", "The address that phones use, as `https://photos.example.org`.", "", _PROBES),
    Setting(OWN + "MACHINE_LEARNING_URL", "text", "Address of machine learning, as `http://immich-machine-learning:3003`.", "", _PROBES),
    Setting(OWN + "API_KEY", "secret", "API key for the image probe, of a user who has photos, with the permissions `asset.view` and `asset.download`. Goes nowhere but to Immich's two addresses, to the external one only with TLS that is trusted.", "", _PROBES),
    Setting(OWN + "PROBE_INTERVAL", "duration", "How often the addresses are probed.", "60s", _PROBES),
    Setting(OWN + "UPLOAD_LIMIT_INTERVAL", "duration", "How often the largest upload that the addresses take is asked for.", "1h", _PROBES),
    Setting(OWN + "PROBE_CA_FILE", "file", "Certificates (PEM) to trust beside the system's, for an authority of your own.", "", _PROBES),
    Setting(OWN + "DATABASE_BACKUPS", "list", "Dumps of the database by another tool than Immich: paths, in which `*` and `?` match.", "", _BACKUPS),
    Setting(OWN + "MEDIA_BACKUPS", "list", "Backups of the media folder: paths, in which `*` and `?` match, or a file that your tool touches after each good run.", "", _BACKUPS),
    Setting(OWN + "RESTORE_TEST_FILE", "path", "A file that you touch after each restore that you have tried and found good.", "", _BACKUPS),
    Setting(OWN + "BACKUP_INTERVAL", "duration", "How often the backups are looked at.", "10m", _BACKUPS),
    Setting(OWN + "BACKUP_RATE", "number", "Megabytes in a second that are read to check a new dump, at most.", "20", _BACKUPS),
    Setting(OWN + "PAGE_PATROL", "switch", "Read every page of Immich's tables, slowly and over and over, to find damaged ones.", "false", _PATROL),
    Setting(OWN + "PAGE_PATROL_RATE", "number", "Pages of 8 kB read in a second, at most.", "100", _PATROL),
    Setting(OWN + "PAGE_PATROL_INTERVAL", "duration", "How long after the beginning of one reading of all pages the next one begins, at the earliest.", "12h", _PATROL),
    Setting(OWN + "AMCHECK", "switch", "After each reading of all pages, have the extension amcheck look through every B-tree index.", "false", _PATROL),
    Setting(OWN + "DISABLE", "list", "Collectors to switch off, such as `host` beside a node_exporter.", "", _WORK),
    Setting(OWN + "LIBRARY_INTERVAL", "duration", "How often the library is counted; stretches itself on a slow database.", "5m", _WORK),
    Setting(OWN + "CONTAINER_USAGE_INTERVAL", "duration", "How often memory and CPU of containers are read.", "15s", _WORK),
    Setting(OWN + "VERSION_INTERVAL", "duration", "How often versions are compared.", "10m", _WORK),
    Setting(OWN + "LOG_LEVEL", "choice", "How much is logged.", "info", _WORK, choices=("debug", "info", "warning", "error"), flag="--log.level"),
    Setting(OWN + "CONFIG_FILE", "file", "A YAML file with any of these settings; the environment wins over it.", "", _WORK, flag="--config.file"),
    Setting(OWN + "LISTEN_ADDRESS", "list", "Addresses to listen on, `host:port` or `:port`; the flag may be repeated.", ":12283", _WEB, flag="--web.listen-address"),
    Setting(OWN + "WEB_CONFIG_FILE", "file", "TLS and basic authentication: a web configuration file of the Prometheus exporter toolkit, read again when it changes.", "", _WEB, flag="--web.config.file"),
    Setting(OWN + "TELEMETRY_PATH", "text", "Path of the metrics.", "/metrics", _WEB, flag="--web.telemetry-path"),
)  # fmt: skip

BY_NAME = {setting.name: setting for setting in SETTINGS}
BY_KEY = {setting.key: setting for setting in SETTINGS}

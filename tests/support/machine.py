"""A machine with Immich on it, as people have one, for drills that break it for real.

A Docker engine of its own in a network namespace of its own; Immich's stock Compose project and, beside it, nginx with
a certificate, and our compose example with the exporter's own image; the photos, the database, an external library
and Docker's data each on a disk of their own, a real ext4. What cannot be pulled here stands in, under its real name:

* Postgres is Debian 13's Postgres 17 with pgvector, where Immich's image has 14 with VectorChord; initialised as that
  image does, with checksums, and not run by root. Redis is Debian's Valkey 8. nginx is Debian's.
* The server and machine learning are the programs in tests/drills/stand_ins, which say what they do and leave out.
* The filtering Docker proxy is HAProxy with a shorter configuration (see support/stock.py).
"""

import inspect
import json
import os
import pickle
import random
import shutil
import socket
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import httpx
import yaml
from psycopg.types.json import Jsonb

from immich_vitals.demo.photos import make_library
from immich_vitals.demo.web import KEY
from support import images
from support.certificates import make_certificate
from support.docker_engine import Engine, EngineError
from support.stock import DOCKER_PROXY, ENVIRONMENT, IMMICH, compose_plugin

ROOT = Path(__file__).parents[2]
STAND_INS = ROOT / "tests" / "drills" / "stand_ins"
HOUSE = "immich-vitals-test-house"
EXPORTER = "immich-vitals"
NGINX = "docker.io/library/nginx:1.29"
PACKAGES = (
    "base-files", "base-passwd", "dash", "coreutils", "findutils", "grep", "postgresql-17", "postgresql-17-pgvector",
    "nginx-light", "valkey-server", "valkey-tools", "haproxy", "python3", "python3-psycopg-c", "python3-redis", "tini",
)  # fmt: skip
# Large, and never opened here.
HEAVY = ("/libLLVM", "/libz3.", "/perl", "/i18n/locales/", "/llvmjit", "/bitcode/")
USERS = "root:x:0:0:root:/root:/bin/sh\npostgres:x:999:999::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n"
GROUPS = "root:x:0:\npostgres:x:999:\nnogroup:x:65534:\n"
POSTGRES_USER = 999
HOST_NAME = "photos.example.org"
PG_BIN = "/usr/lib/postgresql/17/bin"
DATA = Path("/data")
OLD_DISK = Path("/mnt/old-disk")
MIB = 1 << 20
# The sizes of the disks: small, so that they are full soon. Files in them are sparse.
DISKS = {"library": 128 * MIB, "postgres": 640 * MIB, "old-disk": 16 * MIB}
FILES = 8192
DOCKER_BYTES = 2048 * MIB
PING = "import urllib.request as u; u.urlopen('http://localhost:2283/api/server/ping', timeout=2)"
COMPOSE_IMMICH = "docker compose -f docker-compose.yml -f docker-compose.override.yml"
COMPOSE_VITALS = "docker compose -f docker-compose.example.yml -f drills.yml"
PATIENCE = 90.0
T = TypeVar("T")

NGINX_CONF = """
daemon off;
user root;
worker_processes 1;
error_log stderr info;
pid /tmp/nginx.pid;
events { worker_connections 256; }
http {
    access_log off;
    client_body_temp_path /tmp/body;
    proxy_temp_path /tmp/proxy;
    fastcgi_temp_path /tmp/fastcgi; uwsgi_temp_path /tmp/uwsgi; scgi_temp_path /tmp/scgi;
    map $http_upgrade $connection_upgrade { default upgrade; "" close; }
    # Asked at each request, as a container that is made anew has another address.
    resolver 127.0.0.11 valid=1s;
    server {
        listen 443 ssl;
        server_name photos.example.org;
        ssl_certificate /etc/proxy/certificate.pem;
        ssl_certificate_key /etc/proxy/certificate.key;
        client_max_body_size 50000m;
        include /etc/proxy/server.conf;
    }
}
"""
SERVER_CONF = """
set $immich http://immich-server:2283;
location / {
    proxy_pass $immich;
    proxy_http_version 1.1;
    proxy_set_header Host $host;
    proxy_set_header Upgrade $http_upgrade;
    proxy_set_header Connection $connection_upgrade;
}
"""
# What differs from the example: everything is looked at more often, and Prometheus runs elsewhere.
OVERRIDE = """
services:
  exporter:
    environment:
      IMMICH_VITALS_API_KEY: {key}
      IMMICH_VITALS_EXTERNAL_URL: https://{host}
      IMMICH_VITALS_PROBE_CA_FILE: /proxy/authority.pem
      IMMICH_VITALS_EXPECT: server, machine_learning, database, redis
      IMMICH_VITALS_CONTAINERS: proxy=nginx
      IMMICH_VITALS_EXTERNAL_PATHS: /mnt/old-disk
      IMMICH_VITALS_DOCKER_PATH: /watched/docker
      IMMICH_VITALS_MEDIA_BACKUPS: /vitals/photos-backed-up
      IMMICH_VITALS_RESTORE_TEST_FILE: /vitals/restore-tried
      IMMICH_VITALS_FILE_RATE: "1000"
      IMMICH_VITALS_FILE_WAKES_DISKS: "true"
      IMMICH_VITALS_PAGE_PATROL: "true"
      IMMICH_VITALS_PAGE_PATROL_RATE: "2000"
      IMMICH_VITALS_DISABLE: {disable}
      {intervals}
    volumes:
      - ./old-disk:/mnt/old-disk:ro,rslave
      - {docker}:/watched/docker:ro
      - ./proxy:/proxy:ro
      - ./vitals:/vitals:ro
    ports: !override ["12283:12283"]
"""
INTERVALS = {
    **dict.fromkeys(("STORAGE", "FILE", "LIBRARY", "PROBE"), "2s"),
    **dict.fromkeys(("BACKUP", "VERSION", "PAGE_PATROL", "UPLOAD_LIMIT", "CONTAINER_USAGE"), "4s"),
}
IMMICH_OVERRIDE = {
    "services": {
        "immich-server": {"volumes": ["./old-disk:/mnt/old-disk:ro,rslave"]},
        # As 2.5.6 and newer have it in their rootless example; 999 is the image's own user.
        "database": {"user": f"{POSTGRES_USER}:{POSTGRES_USER}"},
    }
}


def make_images(folder: Path) -> Path:
    """What `docker save` gives of all images, made once for all machines."""
    house = folder / "house.tar"
    unpacked = folder / "house-unpacked.tar"
    images.debian(unpacked, *PACKAGES)
    with tarfile.open(unpacked) as source, tarfile.open(house, "w") as target:
        for member in source:
            if not any(part in member.name for part in HEAVY):
                target.addfile(member, source.extractfile(member) if member.isreg() else None)
        target.add(ROOT / "exporter" / "immich_vitals", "usr/lib/python3/dist-packages/immich_vitals")
        target.add(STAND_INS, "stand-ins")
        for name, text in (("etc/passwd", USERS), ("etc/group", GROUPS), ("etc/haproxy.cfg", DOCKER_PROXY)):
            (folder / "text").write_text(text)
            target.add(folder / "text", name)
        for name in ("var/lib/postgresql/data", "valkey", "cache"):
            told = tarfile.TarInfo(name)
            told.type, told.uid, told.gid, told.mode = tarfile.DIRTYPE, POSTGRES_USER, POSTGRES_USER, 0o755
            target.addfile(told)
    unpacked.unlink()
    services = yaml.safe_load(IMMICH)["services"]
    example = yaml.safe_load((ROOT / "docker-compose.example.yml").read_text())["services"]
    kinds = {name: about["image"].replace("${IMMICH_VERSION:-release}", "v2.7.5") for name, about in services.items()}
    python = ["/usr/bin/tini", "--", "python3", "-u"]
    made: Mapping[str, tuple[list[str], dict[str, str]]] = {
        kinds["immich-server"]: (
            [*python, "/stand-ins/immich_server.py"],
            {"HEALTHCHECK": f"--interval=30s --timeout=20s CMD {json.dumps(['python3', '-c', PING])}"},
        ),
        kinds["immich-machine-learning"]: ([*python, "/stand-ins/machine_learning.py"], {}),
        kinds["database"]: (
            ["/bin/sh", "/stand-ins/postgres.sh"],
            {"USER": str(POSTGRES_USER), "STOPSIGNAL": "SIGINT"},
        ),
        kinds["redis"]: (
            ["valkey-server", "--protected-mode", "no", "--dir", "/valkey", "--save", "60 1"],
            {"USER": str(POSTGRES_USER), "VOLUME": "/valkey"},
        ),
        NGINX: (["nginx", "-c", "/etc/proxy/nginx.conf"], {}),
        example["docker-proxy"]["image"]: (["haproxy", "-f", "/etc/haproxy.cfg"], {}),
    }
    with Engine() as engine:
        base = images.import_base(engine, folder)
        images.build(engine, ROOT, base, EXPORTER)
        images.load(engine, house, HOUSE)
        house.unlink()
        for name, (entry, changes) in made.items():
            dockerfile = [f"FROM {HOUSE}", *(f"{word} {value}" for word, value in changes.items())]
            dockerfile.append(f"ENTRYPOINT {json.dumps(entry)}")
            (folder / "Dockerfile").write_text("\n".join(dockerfile))
            context = folder / "context"
            context.mkdir(exist_ok=True)
            engine.run("build", "--quiet", "--file", str(folder / "Dockerfile"), "--tag", name, str(context))
        saved = folder / "images.tar"
        engine.run("save", "--output", str(saved), EXPORTER, *made, seconds=300)
    return saved


@dataclass(frozen=True, slots=True)
class Shared:
    """What is made once for all machines: the images, Compose, the rows of the library, and its files."""

    folder: Path
    images: Path
    tools: Path

    @classmethod
    def make(cls, folder: Path) -> Self:
        tools = compose_plugin(_made(folder / "tools"))
        library = make_library(folder / "library", folder / "old-disk")
        moved = {str(folder / "library"): str(DATA), str(folder / "old-disk"): str(OLD_DISK)}
        rows = {table: [_moved(row, moved) for row in rows] for table, rows in library.rows.items()}
        kept = [each for each in rows["system_metadata"] if each["key"] not in ("system-flags", "MediaLocation")]
        rows["system_metadata"] = kept  # the server writes these at its first start
        (folder / "rows.pickle").write_bytes(pickle.dumps(rows))
        return cls(folder, make_images(folder), tools)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _moved(value: T, moved: Mapping[str, str]) -> T:
    """The same with other paths, whatever holds them."""
    found: object = value
    if isinstance(value, str):
        for before, after in moved.items():
            if value.startswith(before):
                found = after + value[len(before) :]
    elif isinstance(value, list):
        found = [_moved(each, moved) for each in value]
    elif isinstance(value, Mapping):
        found = {name: _moved(each, moved) for name, each in value.items()}
    elif isinstance(value, Jsonb):
        found = Jsonb(_moved(value.obj, moved))
    return found  # type: ignore[return-value]


SEED = """
import pickle, sys
from immich_vitals.demo.photos import Library
sys.path.insert(0, "/stand-ins")
import immich_server
with immich_server.database() as connection:
    Library(pickle.load(open("/seed/rows.pickle", "rb"))).insert(connection)
    connection.execute("ANALYZE")
"""


@dataclass(frozen=True, slots=True)
class Counts:
    """What is there of somebody's photos: rows of assets, and files of the media folder."""

    assets: int
    files: int


class Machine:
    """Runs until the end of the block. `address` is where it is reached from outside, an end of a network of four that
    nobody else uses. With `host` its exporter looks at the whole machine, too."""

    engine: Engine
    folder: Path

    def __init__(self, shared: Shared, address: str, *, host: bool = False) -> None:
        self._shared = shared
        self.address = address
        self._host = host
        self._ends = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as ends:
            self.engine = ends.enter_context(_EngineOnDisk())
            self.engine.run("load", "--input", str(self._shared.images), seconds=300)
            _wire(self.engine, self.address)
            self.folder = self.engine.folder / "immich-app"
            self._make_folder()
            ends.callback(self.engine.remove_containers)
            self._start()
            self._ends = ends.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ends.close()

    @property
    def target(self) -> str:
        """Where Prometheus finds the exporter."""
        return f"{self.address}:12283"

    @property
    def server(self) -> str:
        """The address of Immich's server, beside the proxy."""
        return f"http://{self.address}:2283"

    def sh(self, script: str, seconds: float = 180.0) -> str:
        """What the script says, run in the folder of the projects. Raises `EngineError`."""
        environment = {
            "PATH": os.environ["PATH"], "DOCKER_HOST": self.engine.host, "DOCKER_CONFIG": str(self._shared.tools),
        }  # fmt: skip
        done = subprocess.run(
            ["sh", "-ec", script], env=environment, cwd=self.folder, capture_output=True, text=True, timeout=seconds
        )
        if done.returncode != 0:
            raise EngineError(f"{script}: {done.stdout}{done.stderr}")
        return done.stdout.strip()

    def immich(self, words: str) -> str:
        """`docker compose <words>` on Immich's project."""
        return self.sh(f"{COMPOSE_IMMICH} {words}")

    @contextmanager
    def changed(self, service: str, change: Mapping[str, object], compose: str = COMPOSE_IMMICH) -> Iterator[None]:
        """With the service made anew with this in its part of the Compose file; at the end it is as before."""
        more = self.folder / f"change-{service}.yml"
        more.write_text(yaml.dump({"services": {service: dict(change)}}, Dumper=_Dumper))
        try:
            self.sh(f"{compose} -f {more.name} up -d --no-deps {service}")
        except EngineError as error:  # it need not start
            if "Error response from daemon" not in str(error):
                raise
        yield
        self.sh(f"{compose} up -d --no-deps --force-recreate {service}")
        self.wait_until_up()

    def set_environment(self, **wanted: str) -> None:
        """Set these in Immich's `.env`."""
        path = self.folder / ".env"
        kept = [line for line in path.read_text().splitlines() if line.partition("=")[0] not in wanted]
        path.write_text("\n".join([*kept, *(f"{name}={value}" for name, value in wanted.items()), ""]))

    def vitals(self, words: str) -> str:
        """`docker compose <words>` on ours."""
        return self.sh(f"{COMPOSE_VITALS} {words}")

    def docker(self, words: str) -> str:
        return self.sh(f"docker {words}")

    def sql(self, *statements: str, database: str = "immich") -> str:
        """What Postgres answers, without frames, as its superuser. Raises `EngineError`."""
        commands = [word for statement in statements for word in ("-c", statement)]
        psql = ["exec", "-i", "immich_postgres", f"{PG_BIN}/psql", "-h", "/tmp", "-U", "postgres", "-d", database]
        return self.engine.run(*psql, "-XAtq", "-v", "ON_ERROR_STOP=1", *commands)

    def redis(self, *words: str) -> str:
        """What Redis answers. Raises `EngineError` for an error, too."""
        return self.engine.run("exec", "immich_redis", "valkey-cli", "-e", *words)

    def host_pid(self, container: str) -> int:
        """Of the container's first process, as the machine numbers it."""
        return int(self.engine.value(container, "{{.State.Pid}}"))

    def on_disk(self, name: str) -> Path:
        """The folder where the disk `name` is mounted."""
        return self.folder / name

    def mount(self, name: str) -> None:
        """Mount the disk `name` where it belongs."""
        point = self.on_disk(name)
        point.mkdir(exist_ok=True)
        _sh("mount", "-o", "loop", self.engine.folder / f"{name}.img", point)

    def unmount(self, name: str) -> None:
        """Unmount it, whoever uses it."""
        _sh("umount", "-l", self.on_disk(name))

    def counts(self) -> Counts:
        files = sum(1 for path in self.on_disk("library").rglob("*") if path.is_file())
        return Counts(int(self.sql("SELECT count(*) FROM asset")), files)

    def post(self, path: str, body: bytes = b"", kind: str = "application/octet-stream") -> int:
        """The status with which Immich's server answers a POST with the demo's key, or 0 for no answer."""
        try:
            headers = {"Content-Type": kind, "x-api-key": KEY}
            return httpx.post(f"{self.server}{path}", content=body, headers=headers, timeout=30).status_code
        except httpx.HTTPError:
            return 0

    def upload(self, content: bytes, name: str = "IMG_9999.jpg") -> int:
        """Upload a photo as the app does; returns the status, 0 for no answer."""
        head = f'--b\r\nContent-Disposition: form-data; name="assetData"; filename="{name}"\r\n\r\n'
        body = head.encode() + content + b"\r\n--b--\r\n"
        return self.post("/api/assets", body, "multipart/form-data; boundary=b")

    def abort_upload(self) -> None:
        """Begin an upload and hang up, as a phone does that leaves the house."""
        head = (
            f"POST /api/assets HTTP/1.1\r\nHost: {self.address}\r\nx-api-key: {KEY}\r\n"
            "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 9999999\r\n\r\n--b\r\n"
        )
        with socket.create_connection((self.address, 2283), timeout=10) as phone:
            phone.sendall(head.encode())

    def between_probes(self) -> None:
        """Until a round of the exporter's probes has just ended: a fault in the middle of one shows half of itself."""

        def last() -> str:
            text = httpx.get(f"http://{self.target}/metrics", timeout=10).text
            return next((line for line in text.splitlines() if "last_success" in line and '"probe"' in line), "")

        before = last()
        self.wait_for("a round of probes ends", lambda: last() != before)

    def wait_for(self, what: str, look: Callable[[], object], seconds: float = PATIENCE) -> None:
        """Until `look()` is true; an error of the engine counts as not yet."""

        def tried() -> bool:
            with suppress(EngineError):
                return bool(look())
            return False

        self.engine.wait_for(tried, what, seconds)

    def wait_until_up(self) -> None:
        """Until Immich's server answers."""

        def answers() -> bool:
            with suppress(httpx.HTTPError):
                return httpx.get(f"{self.server}/api/server/ping", timeout=2).status_code == 200
            return False

        self.wait_for("the server answers", answers)

    def _make_folder(self) -> None:
        folder = self.folder
        folder.mkdir()
        self.engine.folder.chmod(0o755)
        # Mounts in here show in containers that ask for it (rslave), as on a machine with systemd.
        _sh("mount", "--bind", folder, folder)
        _sh("mount", "--make-private", folder)
        _sh("mount", "--make-shared", folder)
        for name, size in DISKS.items():
            make_disk(self.engine.folder / f"{name}.img", size, files=size // 4096)
            self.mount(name)
        (folder / "postgres" / "lost+found").rmdir()
        os.chown(folder / "postgres", POSTGRES_USER, POSTGRES_USER)
        (folder / "postgres").chmod(0o700)
        for name in ("proxy", "vitals"):
            (folder / name).mkdir()
        for name in ("photos-backed-up", "restore-tried"):
            (folder / "vitals" / name).touch()
        self.make_certificates()
        self.set_proxy()
        (folder / ".env").write_text(f"{ENVIRONMENT}VITALS_DOCKER_SOCKET={self.engine.socket}\n")
        (folder / "docker-compose.yml").write_text(IMMICH)
        (folder / "docker-compose.override.yml").write_text(yaml.safe_dump(IMMICH_OVERRIDE))
        shutil.copy(ROOT / "docker-compose.example.yml", folder)
        intervals = [f"IMMICH_VITALS_{name}_INTERVAL: {value}" for name, value in INTERVALS.items()]
        (folder / "drills.yml").write_text(
            OVERRIDE.format(
                key=KEY,
                host=HOST_NAME,
                docker=self.engine.folder / "r",
                intervals="\n      ".join(intervals),
                disable='""' if self._host else "host",
            )
        )

    def _start(self) -> None:
        """A first start, then a library that has been in use for long."""
        self.immich("up -d --quiet-pull")
        self.wait_until_up()
        self.immich("stop immich-server")
        for name in ("library", "old-disk"):
            _sh("cp", "-a", f"{self._shared.folder / name}/.", self.on_disk(name))
        run = "docker compose run --rm --no-deps -T --entrypoint python3 -v {}:/seed:ro immich-server -c '{}'"
        self.sh(run.format(self._shared.folder, SEED))
        self.immich("up -d")
        self.docker(
            f"run --detach --name nginx --restart always --network immich_default --network-alias {HOST_NAME}"
            f" --publish 443:443 --volume {self.folder}/proxy:/etc/proxy:ro {NGINX}"
        )
        self.wait_until_up()
        self.back_up()
        self.vitals("up -d exporter")

    def back_up(self) -> None:
        """The nightly dump, by Immich's own job."""
        before = set(self.dumps())
        self.add_job("backupDatabase", "DatabaseBackup")
        self.wait_for("the dump is made", lambda: set(self.dumps()) - before)

    def dumps(self) -> list[Path]:
        """Immich's dumps, the newest last."""
        return sorted((self.on_disk("library") / "backups").glob("immich-db-backup-*.sql.gz"))

    def add_job(self, queue: str, name: str, asset: str = "", count: int = 1) -> None:
        """Add jobs as the server does."""
        script = (
            "import sys; sys.path.insert(0, '/stand-ins'); import immich_server as s\n"
            f"with s.queues() as c: s.add_jobs(c, '{queue}', '{name}', {count}, '{asset}')"
        )
        self.engine.run("exec", "immich_server", "python3", "-c", script)

    def set_proxy(self, server: str = SERVER_CONF, conf: str = NGINX_CONF) -> None:
        """Write nginx' configuration, and have it read if it runs."""
        (self.folder / "proxy" / "nginx.conf").write_text(conf)
        (self.folder / "proxy" / "server.conf").write_text(server)
        self.reload_proxy()

    def reload_proxy(self) -> None:
        with suppress(EngineError):
            self.engine.run("kill", "--signal=HUP", "nginx")

    def make_certificates(self, *, days: float = 365.0, name: str = HOST_NAME, chain: bool = True) -> None:
        """A certificate for nginx from an authority that the exporter trusts, through an intermediate one."""
        folder = self.folder / "proxy"
        if not (folder / "authority.pem").exists():
            self._root = make_certificate(folder, "authority", days=3650.0)
        middle = make_certificate(folder, "middle", self._root, days=3650.0, authority=True)
        leaf = make_certificate(folder, name, middle, days=days)
        whole = leaf.public.read_bytes() + (middle.public.read_bytes() if chain else b"")
        (folder / "certificate.pem").write_bytes(whole)
        (folder / "certificate.key").write_bytes(leaf.private.read_bytes())


class Instead(list[str]):
    """In `Machine.changed`: this in the place of what the Compose file says there, not beside it."""


class _Dumper(yaml.SafeDumper):
    """Writes Compose files."""


_Dumper.add_representer(Instead, lambda dumper, words: dumper.represent_sequence("!override", words))


class _EngineOnDisk(Engine):
    """An engine whose data lies on a disk of its own."""

    def __init__(self) -> None:
        super().__init__(networks=True)

    def __enter__(self) -> Self:
        make_disk(self.folder / "docker.img", DOCKER_BYTES, files=65536)
        (self.folder / "r").mkdir()
        _sh("mount", "-o", "loop", self.folder / "docker.img", self.folder / "r")
        return super().__enter__()


def make_disk(image: Path, size: int, *, files: int = FILES) -> None:
    """An ext4 for so many files, without room that only root may use."""
    image.touch()
    os.truncate(image, size)
    _sh(
        "mkfs.ext4", "-q", "-m0", "-N", files, "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", "-J", "size=4",
        image,
    )  # fmt: skip


def described() -> str:
    """What the machines are made of, for people: the docstring of this module without its first sentence."""
    told = inspect.cleandoc(__doc__ or "").partition("\n\n")[2]
    return f"{told}\n"


def free_address() -> str:
    """One for a machine, of the range that is set aside for tests of networks (RFC 2544)."""
    while True:
        address = f"198.{random.choice((18, 19))}.{random.randrange(256)}.{random.randrange(64) * 4 + 2}"
        if not subprocess.run(["ip", "-o", "addr", "show", "to", f"{address}/30"], capture_output=True).stdout:
            return address


def _wire(engine: Engine, address: str) -> None:
    """A cable from here to `address` in the engine's namespace, with which it ends."""
    head, _, last = address.rpartition(".")
    name = f"iv{int(head.split('.')[1]) * 256 + int(head.split('.')[2]):x}{int(last):02x}"
    subprocess.run(["ip", "link", "del", name], capture_output=True)  # of a machine before, whose end is under way
    _sh("ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}p", "netns", engine.pid)
    _sh("ip", "addr", "add", f"{head}.{int(last) - 1}/30", "dev", name)
    _sh("ip", "link", "set", name, "up")
    inside = ("nsenter", f"--net=/proc/{engine.pid}/ns/net", "ip")
    _sh(*inside, "addr", "add", f"{address}/30", "dev", f"{name}p")
    _sh(*inside, "link", "set", f"{name}p", "up")


def _sh(*words: object) -> None:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if done.returncode != 0:
        raise EngineError(f"{' '.join(map(str, words))}: {done.stderr}")

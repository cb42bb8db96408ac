"""Images made of what is on this machine and in Debian's packages, where no registry of images can be reached."""

import io
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from support.docker_engine import Engine, EngineError

SUITE = "trixie"  # Debian 13, which docker.io/library/python:3.13-slim stands on
BASE = "immich-vitals-test-base"
PYTHON = ("base-files", "python3", "python3-venv", "dash", "coreutils", "findutils", "ca-certificates")
EMPTY = (
    "./dev/*",
    "./usr/share/doc/*",
    "./usr/share/man/*",
    "./usr/share/locale/*",
    "./var/cache/*",
    "./var/lib/apt/*",
)
TRUST = Path("/etc/ssl/certs/ca-certificates.crt")
PIP = Path("/etc/pip.conf")


def why_not() -> str | None:
    """Why no image can be made here, or None."""
    return None if shutil.which("mmdebstrap") else "mmdebstrap is not installed (apt-get install mmdebstrap)"


def debian(target: Path, *packages: str) -> None:
    """Unpack these packages of Debian 13 and what they need into a tar file or a folder; no script of theirs is run.

    Asks the mirror that apt on this machine is set up for. Raises `EngineError`.
    """
    told = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages",
         "Label: Debian", "Component: main"],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    if not told:
        raise EngineError("apt knows no mirror of Debian; apt-get update")
    keys = "/usr/share/keyrings/debian-archive-keyring.gpg"
    done = subprocess.run(
        ["mmdebstrap", "--quiet", "--variant=extract", f"--include={','.join(packages)}",
         *(f"--dpkgopt=path-exclude={path[1:]}" for path in EMPTY), SUITE, str(target),
         f"deb [signed-by={keys}] {told[0]} {SUITE} main"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise EngineError(f"mmdebstrap: {done.stderr}")


def import_base(engine: Engine, folder: Path) -> str:
    """The stand-in for python:3.13-slim: Debian 13 with Debian's own Python 3.13 in /usr, instead of one that was built
    into /usr/local; neither pip nor apt nor dpkg's lists; with the certificates that this machine trusts, and its
    settings for pip. Returns its name."""
    packed = folder / "base.tar"
    debian(packed, *PYTHON)
    with tarfile.open(packed, "a") as tar:
        tar.add(TRUST.resolve(), f".{TRUST}")
        if PIP.exists():
            tar.add(PIP, f".{PIP}")
    load(engine, packed, BASE, {"ENV": ["PATH=/usr/local/bin:/usr/bin:/bin"]})
    return BASE


def build(engine: Engine, root: Path, base: str, name: str, *options: str) -> str:
    """`docker build` of the Dockerfile in `root`, with the network of this machine. Raises `EngineError`."""
    return engine.run(
        "build", "--network=host", f"--build-arg=BASE={base}", *options, "--tag", name, str(root), seconds=400
    )


def load(engine: Engine, packed: Path, name: str, changes: Mapping[str, Iterable[str]] | None = None) -> None:
    """`docker import`, with lines of a Dockerfile. Raises `EngineError`."""
    lines = (f"--change={word} {value}" for word, values in (changes or {}).items() for value in values)
    engine.run("import", *lines, str(packed), name, seconds=120)


@dataclass(slots=True)
class Root:
    """The files of an image made of programs of this machine, each with the libraries that it is linked with."""

    target: Path
    _tar: tarfile.TarFile = field(init=False)
    _there: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._tar = tarfile.open(self.target, "w")  # noqa: SIM115  # closed by `image`

    def program(self, source: Path, target: str) -> None:
        """A program or library, and what it needs, to where the loader looks for that."""
        self.file(source, target)
        said = subprocess.run(["ldd", str(source)], capture_output=True, text=True, check=False).stdout
        for found in re.findall(r"(/\S+) \(0x", said):
            self.file(Path(found), os.path.normpath(found))

    def file(self, source: Path, target: str) -> None:
        if target not in self._there:
            self._there.add(target)
            self._tar.add(source.resolve(), target)

    def tree(self, source: Path, target: str) -> None:
        """A folder as it stands, with what its programs and libraries need from elsewhere."""
        for path in sorted(source.rglob("*")):
            if path.is_file() and (path.suffix == ".so" or path.parent.name == "bin"):
                self.program(path, f"{target}/{path.relative_to(source)}")
            elif path.is_file():
                self.file(path, f"{target}/{path.relative_to(source)}")

    def text(self, target: str, text: str) -> None:
        told = tarfile.TarInfo(target)
        told.size, told.mode = len(text.encode()), 0o644
        self._tar.addfile(told, io.BytesIO(text.encode()))

    def folder(self, target: str, owner: int = 0, mode: int = 0o755) -> None:
        told = tarfile.TarInfo(target)
        told.type, told.uid, told.gid, told.mode = tarfile.DIRTYPE, owner, owner, mode
        self._tar.addfile(told)

    def busybox(self, *applets: str) -> None:
        self.file(Path(shutil.which("busybox") or ""), "/bin/busybox")
        for applet in applets:
            link = tarfile.TarInfo(f"/bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            self._tar.addfile(link)

    def image(self, engine: Engine, name: str, command: Iterable[str], **changes: str) -> None:
        """Make the image: `command` is the entry point, `changes` are lines of a Dockerfile by their first word."""
        self._tar.close()
        lines = {word: [value] for word, value in changes.items()}
        load(engine, self.target, name, {**lines, "ENTRYPOINT": [json.dumps(list(command))]})

"""The file systems that Immich, Postgres and Docker write to: do they answer, and how much room is left?"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Self

from immich_vitals.collector import Collector, Context, Remark
from immich_vitals.config import Config
from immich_vitals.metrics import Metric, Sample
from immich_vitals.settings import FOLDERS, OWN
from immich_vitals.sources.files import PathFacts, WatchedPaths

_LABELS = ("role", "path")

RESPONDING = Metric(
    "filesystem_responding",
    "1 when the path answered within two seconds, be it that it does not exist; 0 when it hangs or its file system"
    " reports an error of its own, as a dead mount does.",
    _LABELS,
)
FOUND = Metric(
    "filesystem_found",
    "1 when the path exists for the exporter; no sample when it does not answer or we may not look.",
    _LABELS,
)
SIZE = Metric(
    "filesystem_size_bytes",
    "Size of the file system that holds the path. This and what follows of room and files is said once for the media"
    " folder and those of Immich's folders that lie on the same one.",
    _LABELS,
)
AVAIL = Metric("filesystem_avail_bytes", "Room on it for a program without privileges.", _LABELS)
FILES = Metric(
    "filesystem_files", "Files it can hold; no sample for file systems without such a limit, as btrfs.", _LABELS
)
FILES_FREE = Metric("filesystem_files_free", "Files that can still be made on it.", _LABELS)
READONLY = Metric(
    "filesystem_readonly",
    "1 when the file system itself is read-only, as after an error on its disk;"
    " a read-only mount of it for the exporter does not count.",
    _LABELS,
)
INFO = Metric(
    "filesystem_info",
    "What holds the path: type, kind (local, network, fuse, or unsupported by Immich and Postgres, as exFAT and NTFS)"
    " and device number, equal for paths on one file system.",
    (*_LABELS, "fstype", "kind", "device"),
)

# They keep neither owners nor permissions, which Immich and Postgres need. `fuseblk` is NTFS or exFAT by FUSE.
_UNSUPPORTED = frozenset(
    ("exfat", "vfat", "msdos", "ntfs", "ntfs3", "fuseblk", "fuse.exfat", "fuse.ntfs", "fuse.ntfs-3g", "fuse.ntfs3g")
)
_NETWORK = frozenset(
    (
        "nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "glusterfs", "beegfs", "ocfs2", "gfs2",
        "fuse.sshfs", "fuse.rclone", "fuse.s3fs", "fuse.glusterfs", "fuse.ceph", "fuse.ceph-fuse", "fuse.goofys",
        "fuse.davfs", "fuse.davfs2", "fuse.juicefs", "fuse.seaweedfs", "fuse.smbnetfs", "fuse.gcsfuse",
    )
)  # fmt: skip
# Docker Desktop's ways into the folders of its host.
_FUSE = frozenset(("fuse", "virtiofs", "osxfs", "grpcfuse", "fakeowner"))


class FilesystemCollector(Collector):
    """The file systems that Immich, Postgres and Docker write to.

    immich_vitals_filesystem_responding{role="media",path="/data"} 1
    immich_vitals_filesystem_avail_bytes{role="media",path="/data"} 2.1e+11
    immich_vitals_filesystem_info{role="media",path="/data",fstype="nfs4",kind="network",device="0:52"} 1
    """

    name = "filesystem"
    metrics = (RESPONDING, FOUND, SIZE, AVAIL, FILES, FILES_FREE, READONLY, INFO)
    timeout = 3.0

    def __init__(self, paths: WatchedPaths) -> None:
        self._paths = paths

    @classmethod
    def from_config(cls, config: Config) -> Self | None:
        return cls(WatchedPaths(config.paths)) if config.paths else None

    @classmethod
    def disabled_because(cls, config: Config) -> str:
        return (
            "no path is known: mount Immich's media folder into the exporter"
            f" and set IMMICH_MEDIA_LOCATION, UPLOAD_LOCATION or {OWN}MEDIA_PATH"
        )

    def collect(self, ctx: Context) -> Iterable[Sample]:
        facts = self._paths.read(ctx.deadline)
        for remark in remarks_on(facts):
            ctx.remark(remark.message, remark.mend)
        return filesystem_samples(facts)


def filesystem_samples(paths: Iterable[PathFacts]) -> Iterator[Sample]:
    """The samples of all paths. The room of a folder of Immich that lies on the media folder's own file system is that
    one's, and said once."""
    paths = list(paths)
    media = {
        facts.mount.device for facts in paths if facts.watched.role == "media" and facts.mount and facts.look.space
    }
    for facts in paths:
        look, labels = facts.look, {"role": facts.watched.role, "path": str(facts.watched.path)}
        yield RESPONDING.sample(look.responding, **labels)
        yield from FOUND.known(look.found, **labels)
        if look.space and not (facts.watched.role in FOLDERS and facts.mount and facts.mount.device in media):
            yield SIZE.sample(look.space.size, **labels)
            yield AVAIL.sample(look.space.avail, **labels)
            yield from FILES.known(look.space.files, **labels)
            yield from FILES_FREE.known(look.space.files_free, **labels)
        if facts.mount:
            yield READONLY.sample(facts.mount.readonly, **labels)
            fstype = facts.mount.fstype
            yield INFO.sample(1, **labels, fstype=fstype, kind=kind_of(fstype), device=facts.mount.device)


def kind_of(fstype: str) -> str:
    """What a type of file system is to those who store on it: `local`, `network`, `fuse` or `unsupported`."""
    if fstype in _UNSUPPORTED:
        return "unsupported"
    if fstype in _NETWORK:
        return "network"
    return "fuse" if fstype in _FUSE or fstype.startswith("fuse.") else "local"


def remarks_on(paths: Sequence[PathFacts]) -> Iterator[Remark]:
    """What to tell people of paths that do not exist, do not answer, or that we may not look at.

    Immich's six folders inside the media folder are not settings: one that is missing shows as not found only.
    """
    media = {facts.watched.path for facts in paths if facts.watched.role == "media"}
    missing = [
        facts
        for facts in paths
        if facts.look.found is False and not (facts.watched.role in FOLDERS and facts.watched.path.parent in media)
    ]
    if missing:
        settings = " and ".join(dict.fromkeys(_setting(facts.watched.role) for facts in missing))
        yield Remark(
            f"not found: {_listed(missing)}",
            f"mount it into the exporter at this path, or set {settings} to where it is mounted",
        )
    closed = [facts for facts in paths if facts.look.responding and facts.look.found is None]
    if closed:
        yield Remark(
            f"this user may not look at {_listed(closed)}",
            "run the exporter as a user or in a group that may enter the folders above it (x), such as Immich's",
        )
    silent = [facts for facts in paths if not facts.look.responding]
    if silent:
        yield Remark(
            f"does not respond: {_listed(silent)}",
            "see whether its disk or file server is there: `dmesg`, `mount`, and `df` on the host",
        )


def _listed(paths: Sequence[PathFacts]) -> str:
    return ", ".join(f"{facts.watched.path} ({facts.watched.role})" for facts in paths)


def _setting(role: str) -> str:
    return f"{OWN}EXTERNAL_PATHS" if role == "external" else f"{OWN}{role.upper()}_PATH"

"""Immich's six folders: are they there, are they the right ones, and may Immich use them?"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from immich_vitals.collector import Collector, Context, Deadline, Every, Remark
from immich_vitals.config import Config, StorageConfig
from immich_vitals.metrics import Metric, Sample
from immich_vitals.settings import FOLDERS, OWN
from immich_vitals.sources.docker_components import Matching
from immich_vitals.sources.docker_writers import FolderMount, Writer, Writers, WritersOfDocker
from immich_vitals.sources.engines import find_engine
from immich_vitals.sources.rights import ACCESSES, Access, User, all_of, may
from immich_vitals.sources.state import State
from immich_vitals.sources.storage import NAMES, Changes, FolderFacts, Identity, MediaFolders, WriteProbe, boot_id

PRESENT = Metric(
    "storage_folder_present",
    "1 when this folder of Immich exists; no sample when we may not look, or it does not answer.",
    ("folder",),
)
MARKER = Metric(
    "storage_marker_present",
    "1 when the folder holds the file .immich, without which Immich (from 1.115) does not start.",
    ("folder",),
)
NESTED = Metric(
    "storage_nested",
    "1 when Immich's folders lie in this one once more, as after a restore one level too deep (upload/upload).",
    ("folder",),
)
ACCESS = Metric(
    "storage_access",
    "1 when the user of the server's container may read, write or enter the folder, its marker and its users' folders,"
    " as permissions and mounts say; no sample when that is not known.",
    ("folder", "access"),
)
IO_ERROR = Metric(
    "storage_io_error", "1 when looking at the folders met an error of the file system below them, such as EIO."
)
ROOT_CHANGES = Metric(
    "storage_root_changes_total",
    "Times that the media folder was found to be another folder, or one of the six on another file system, than at the"
    " look before.",
)
WRITE_PROBE = Metric(
    "storage_write_probe_success",
    "1 when one small file could be written, synced, read back and removed in the media folder; only where"
    " IMMICH_VITALS_WRITE_PROBE is on.",
)

DOCKER_SECONDS = 2.0
# How long a person is told of a change of the root.
TELL_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class StorageFacts:
    """The folders by role (`media` is the one above), who writes to them, and what became of the rest."""

    folders: Mapping[str, FolderFacts]
    writers: Sequence[Writer]
    changes: int
    probe: WriteProbe | None = None


class StorageCollector(Collector):
    """Immich's six folders: there, marked, not nested, usable for Immich, and still the same ones.

    immich_vitals_storage_folder_present{folder="thumbs"} 1
    immich_vitals_storage_marker_present{folder="thumbs"} 0
    immich_vitals_storage_access{folder="upload",access="write"} 1
    """

    name = "storage"
    metrics = (PRESENT, MARKER, NESTED, ACCESS, IO_ERROR, ROOT_CHANGES, WRITE_PROBE)
    timeout = 5.0

    def __init__(
        self, folders: MediaFolders, config: StorageConfig, state: State, docker: WritersOfDocker | None = None
    ) -> None:
        self.trigger = Every(config.interval, stretch=False)
        self._folders = folders
        self._config = config
        self._docker = docker
        self._state = state
        kept = state.read()
        self._changes = Changes.read(kept)
        self._could_write = kept.get("could_write") is True
        self._boot = boot_id()

    @classmethod
    def from_config(cls, config: Config) -> Self | None:
        watched = [item for item in config.paths if item.role in ("media", *FOLDERS)]
        if not watched:
            return None
        engine = find_engine(config.docker)
        docker = WritersOfDocker(engine, Matching.of(config.docker)) if engine else None
        return cls(MediaFolders(watched), config.storage, State(config.state, cls.name), docker)

    @classmethod
    def disabled_because(cls, config: Config) -> str:
        return (
            "no folder of Immich is known: mount its media folder into the exporter, read-only,"
            f" and set IMMICH_MEDIA_LOCATION, UPLOAD_LOCATION or {OWN}MEDIA_PATH"
        )

    def collect(self, ctx: Context) -> Iterable[Sample]:
        writers = self._writers(ctx)
        folders = self._folders.read(ctx.deadline)
        changed = self._note(folders, ctx)
        probe = self._write(ctx) if self._config.write_probe else None
        if changed or (probe and probe.worked and not self._could_write):
            self._could_write = self._could_write or bool(probe and probe.worked)
            self._state.write({**self._changes.kept(), "could_write": self._could_write})
        if self._state.problem:
            ctx.remark(self._state.problem, f"make {OWN}STATE_PATH a folder that the exporter's user may write to")
        facts = StorageFacts(folders, writers.found, self._changes.count, probe)
        for remark in remarks_on(facts):
            ctx.remark(remark.message, remark.mend)
        return storage_samples(facts)

    def close(self) -> None:
        if self._docker is not None:
            self._docker.close()

    def _writers(self, ctx: Context) -> Writers:
        """Who writes, as Docker says; a user in the settings wins."""
        found = Writers()
        if self._docker is not None:
            seconds = ctx.deadline.limit("ask Docker for Immich's user", DOCKER_SECONDS)
            found = self._docker.read(Deadline.after(seconds, ctx.clock))
        if self._config.user is not None:
            own = _user(*self._config.user)
            return Writers(tuple(Writer(own, each.folders) for each in found.found) or (Writer(own, {}),))
        if found.problem:
            ctx.remark(found.problem, found.mend)
        return found

    def _note(self, folders: Mapping[str, FolderFacts], ctx: Context) -> bool:
        identities = {role: Identity.of(facts, self._boot) for role, facts in folders.items()}
        new = self._changes.note(identities, ctx.clock.time())
        at = self._changes.at
        if at is not None and 0 <= ctx.clock.time() - at < TELL_SECONDS:
            ctx.remark(
                "within the last hour the media folder, or the disk of a folder in it, was replaced by another one",
                "if nobody did that, a disk is not mounted: see findmnt on the host before Immich is restarted",
            )
        return new

    def _write(self, ctx: Context) -> WriteProbe | None:
        """What the probe says of Immich; None when it says something of our own rights alone."""
        probe = self._folders.write_probe(ctx.deadline)
        if probe.worked:
            return probe
        if probe.ours and not self._could_write:
            ctx.remark(
                f"this user cannot write to the media folder ({probe.problem})",
                f"mount it writable into the exporter and run it as Immich's user, or set {OWN}WRITE_PROBE to false",
            )
            return None
        ctx.remark(
            f"writing a small file to the media folder failed: {probe.problem}",
            "see `df` and `dmesg` on the host: is its disk full, read-only or broken?",
        )
        return probe


def storage_samples(facts: StorageFacts) -> Iterator[Sample]:
    """The samples of all folders that we see as Immich does."""
    for folder, found in _seen(facts).items():
        look = found.look
        yield from PRESENT.known(look.present, folder=folder)
        yield from MARKER.known(look.marker, folder=folder)
        yield from NESTED.known(look.nested, folder=folder)
        for access, allowed in accesses(folder, facts).items():
            yield from ACCESS.known(allowed, folder=folder, access=access)
    yield IO_ERROR.sample(any(found.look.error for found in facts.folders.values()))
    yield ROOT_CHANGES.sample(facts.changes)
    if facts.probe is not None:
        yield WRITE_PROBE.sample(facts.probe.worked)


def accesses(folder: str, facts: StorageFacts) -> dict[Access, bool | None]:
    """What every container that writes may do with a folder: not, when one of them may not."""
    found = facts.folders[folder]
    if not found.look.present:
        return {}
    answers: dict[Access, bool | None] = {
        access: all_of([_may(writer.user, access, found, facts.folders.get("media")) for writer in facts.writers])
        for access in ACCESSES
    }
    if (found.mount and found.mount.readonly) or not _writable(folder, facts.writers):
        answers["write"] = False
    return answers


def _may(user: User | None, access: Access, found: FolderFacts, media: FolderFacts | None) -> bool | None:
    if user is None:
        return None
    asked = [(rights, found) for rights in found.look.rights]
    marker = found.look.marker_rights
    if marker is not None and access != "enter":  # Immich reads and rewrites it at each start
        asked.append((marker, found))
    if access == "enter" and media is not None and found.watched.path.parent == media.watched.path:
        asked += [(rights, media) for rights in media.look.rights]
    return all_of([may(user, access, rights, of.mount) for rights, of in asked])


def _writable(folder: str, writers: Iterable[Writer]) -> bool:
    return all(writer.folders.get(folder, _AS_USUAL).writable for writer in writers)


_AS_USUAL = FolderMount(writable=True)


def _user(uid: int, gid: int) -> User:
    return User(uid, (gid,), overrides=uid == 0)


def _seen(facts: StorageFacts) -> dict[str, FolderFacts]:
    """The six folders, but for those of which we see something else than Immich."""
    return {role: found for role, found in facts.folders.items() if role in NAMES and not _elsewhere(found, facts)}


def _elsewhere(found: FolderFacts, facts: StorageFacts) -> bool:
    """Whether a container has another folder in the place of this one, and we see what lies below.

    Not when the folder has a path of its own in the settings, or something is mounted there for us, too.
    """
    media = facts.folders.get("media")
    if media is None or found.watched.path.parent != media.watched.path:
        return False
    if found.mount and media.mount and found.mount.point != media.mount.point:
        return False
    return any(writer.folders.get(found.watched.role, _AS_USUAL).elsewhere for writer in facts.writers)


def remarks_on(facts: StorageFacts) -> Iterator[Remark]:
    """What to tell people, each thing once for all folders that have it."""
    seen = _seen(facts)
    looks = {NAMES[role]: found.look for role, found in seen.items()}

    hidden = [NAMES[role] for role in facts.folders if role in NAMES and role not in seen]
    if hidden:
        settings = ", ".join(f"{OWN}{role.upper()}_PATH" for role in facts.folders if NAMES.get(role) in hidden)
        yield Remark(
            f"Immich has {_listed(hidden)} on another disk, which the exporter does not see",
            f"mount it into the exporter at the same place, read-only, or set {settings} to where it is",
        )
    if silent := [_name(role) for role, found in facts.folders.items() if not found.look.responding]:
        yield Remark(
            f"does not respond: {_listed(silent)}", "see whether its disk or file server is there: `dmesg`, `mount`"
        )
    errors = {f"{_name(role)} ({found.look.error})" for role, found in facts.folders.items() if found.look.error}
    if errors:
        yield Remark(
            f"the file system reports errors: {_listed(sorted(errors))}",
            "see `dmesg` on the host, and make a backup before any repair",
        )
    closed = [
        name
        for name, look in looks.items()
        if look.responding and not look.error and (look.present is None or (look.present and look.marker is None))
    ]
    if closed:
        yield Remark(
            f"this user may not look into {_listed(closed)}",
            "run the exporter as a user or in a group that may enter the folders (x), such as Immich's",
        )
    yield from _faults(facts, seen)


def _faults(facts: StorageFacts, seen: Mapping[str, FolderFacts]) -> Iterator[Remark]:
    unmarked = [NAMES[role] for role, found in seen.items() if found.look.marker is False]
    if unmarked and any(found.look.marker for found in seen.values()):
        yield Remark(
            f"the file .immich is missing in {_listed(unmarked)}, so Immich will not start again",
            "look whether the right disk is mounted there before anything else; see the runbook ImmichMarkerMissing",
        )
    if nested := [NAMES[role] for role, found in seen.items() if found.look.nested]:
        yield Remark(
            f"Immich's folders lie once more in {_listed(nested)}: a restore went one level too deep",
            "see the runbook ImmichNestedMedia",
        )
    for access in ACCESSES:
        refused = [NAMES[role] for role in seen if accesses(role, facts).get(access) is False]
        if refused:
            yield Remark(
                f"Immich may not {access} {_listed(refused)}",
                "compare owner and mode (ls -ln) with the user of its container, and look for a read-only mount",
            )


def _name(role: str) -> str:
    return NAMES.get(role, "the media folder")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)

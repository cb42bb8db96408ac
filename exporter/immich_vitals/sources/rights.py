"""May a user read, write or enter a file or folder? By mode bits, owner, groups and access lists, as Linux asks."""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from immich_vitals.sources.files import Mount

Access = Literal["read", "write", "enter"]
ACCESSES: tuple[Access, ...] = ("read", "write", "enter")
_BIT = {"read": 4, "write": 2, "enter": 1}

# Tags of system.posix_acl_access, from linux/posix_acl.h.
_VERSION = 2
_USER, _GROUP_OWNER, _GROUP, _MASK = 0x02, 0x04, 0x08, 0x10

# Their servers may turn one user into another (`all_squash`): what the mode bits refuse here may be allowed there.
_SERVER_DECIDES = frozenset(
    ("nfs", "nfs4", "9p", "afs", "ceph", "lustre", "glusterfs", "beegfs", "osxfs", "grpcfuse", "fakeowner")
)
_SMB = frozenset(("cifs", "smb3", "smbfs"))


@dataclass(frozen=True, slots=True)
class User:
    """Whom files are asked for as. `gids` are the groups that are possible for it where the first one is not told;
    `groups` its further ones. With `more_groups` there are others that we cannot resolve. `overrides`: it is root,
    and permissions do not count for it."""

    uid: int
    gids: tuple[int, ...]
    groups: frozenset[int] = frozenset()
    more_groups: bool = False
    overrides: bool = False


@dataclass(frozen=True, slots=True)
class Rights:
    """What decides about one file or folder: mode bits, owner, group, and its access list as the kernel gives it.

    `hidden`: there is a list that we cannot read (NFSv4, or one that is kept from us)."""

    mode: int
    uid: int
    gid: int
    acl: bytes = b""
    hidden: bool = False


def may(user: User, access: Access, rights: Rights, mount: Mount | None) -> bool | None:
    """Whether the user may do that; None when nobody but the file system's server, or a program, knows."""
    bit = _BIT[access]
    if user.overrides:
        return True if _root_rules(mount) else (True if rights.mode & bit else None)
    if not _bits_count(mount):
        return None
    answers = {_granted(user.uid, user.groups | {gid}, bit, rights) for gid in user.gids}
    if answers == {True}:
        return True
    if answers == {False} and not (user.more_groups or rights.hidden or _denial_is_a_guess(mount)):
        return False
    return None


def all_of(answers: Sequence[bool | None]) -> bool | None:
    """False when one is, else None when one is not known."""
    if False in answers:
        return False
    return None if None in answers or not answers else True


def _granted(uid: int, groups: frozenset[int], bit: int, rights: Rights) -> bool:
    if uid == rights.uid:
        return bool(rights.mode >> 6 & bit)
    # With a list, the group bits of the mode are its mask; where all are 0, Linux does not ask the list at all.
    entries = list(_entries(rights.acl)) if rights.mode & 0o070 else []
    mask = next((perm for tag, perm, _ in entries if tag == _MASK), 7)
    for tag, perm, who in entries:
        if tag == _USER and who == uid:
            return bool(perm & mask & bit)
    owner_bits = next((perm for tag, perm, _ in entries if tag == _GROUP_OWNER), rights.mode >> 3 & 7)
    for_groups = [owner_bits] if rights.gid in groups else []
    for_groups += [perm for tag, perm, who in entries if tag == _GROUP and who in groups]
    if for_groups:
        return any(perm & mask & bit for perm in for_groups)
    return bool(rights.mode & bit)


def _entries(acl: bytes) -> Iterator[tuple[int, int, int]]:
    """(tag, permissions, id) of each entry; none when it is not the form that Linux has had since 2.6."""
    if len(acl) >= 4 and (len(acl) - 4) % 8 == 0 and struct.unpack_from("<I", acl)[0] == _VERSION:
        yield from struct.iter_unpack("<HHI", acl[4:])


def _root_rules(mount: Mount | None) -> bool:
    """Whether root is above permissions there: not where a server decides, which often takes root for nobody."""
    if mount is None or mount.fstype in _SERVER_DECIDES | _SMB:
        return False
    if _by_fuse(mount):
        return {"allow_other", "default_permissions"} <= mount.options or mount.fstype == "virtiofs"
    return True


def _bits_count(mount: Mount | None) -> bool:
    """Whether the mode bits that we see are asked at all."""
    if mount is None:
        return False
    if mount.fstype in _SMB:
        return "noperm" not in mount.options
    return not _by_fuse(mount) or "default_permissions" in mount.options or mount.fstype == "virtiofs"


def _denial_is_a_guess(mount: Mount | None) -> bool:
    return mount is None or mount.fstype in _SERVER_DECIDES


def _by_fuse(mount: Mount) -> bool:
    return mount.fstype in ("fuse", "fuseblk", "virtiofs", "osxfs", "grpcfuse", "fakeowner") or mount.fstype.startswith(
        "fuse."
    )

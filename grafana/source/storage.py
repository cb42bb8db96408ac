"""Storage and backups: the disks, Immich's folders on them, the files in these, and the copies of it all."""

from grafana.source.kit import (
    BAD,
    NOTE,
    PLAIN,
    SOON,
    UNKNOWN,
    WELL,
    YES_NO,
    Board,
    Column,
    Query,
    State,
    Word,
    blank,
    limit,
    lines,
    number,
    or_words,
    rows,
    spoken,
    timeline,
)

WEEK_SECONDS = 7 * 86400
"""ImmichDiskWillFill: at the pace of the last week a disk that is full in another one."""
BACKUP_MISSED, BACKUP_GRACE_SECONDS = 2, 7200
"""kind:...:overdue, behind ImmichBackupStale: two turns missed, and two hours in which a large dump ends."""
ONE_EVENT = 0.5
"""What `increase` makes of one event may be somewhat less than 1."""

ANSWERS = (State(1, "answers", WELL), State(0, "does not answer", BAD))
FOUND = (State(1, "there", WELL), State(0, "missing", BAD), State(2, "not made yet", NOTE))
MARKED = (State(1, "there", WELL), State(0, "missing", BAD), State(2, "never had one", NOTE))
PLACED = (
    State(1, "in place", WELL),
    State(0, "once more inside", SOON),
    State(2, "not looked at", "transparent"),
)
ALLOWED = (State(1, "allowed", WELL), State(0, "refused", BAD), State(-1, "unknown", UNKNOWN))
WRITES = (State(1, "writable", WELL), State(0, "read-only", BAD), State(2, "only read anyway", NOTE))
ROOM = (State(0, "enough", WELL), State(1, "almost full", BAD), State(2, "only read", "transparent"))
FITS = (
    State(0, "fits", WELL),
    State(1, "risky for Postgres", SOON),
    State(2, "unsupported", BAD),
    State(3, "keeps no owners", NOTE),
)
LATE = (State(0, "yes", WELL), State(1, "overdue", SOON))
SAME_DISK = (State(0, "another disk", WELL), State(1, "same disk", NOTE), State(2, "same disk", SOON))

FILE_OFF = Word("switched off", 'immich_vitals_collector_enabled{@, collector="file"} == 0')
AUDIT_RUNS = Word("no pass yet", "immich_vitals_file_audit_progress_ratio{@}", NOTE)
AUDIT_OFF = Word("switched off", "immich_vitals_file_sample_timestamp_seconds{@}")
AUDIT = (FILE_OFF, AUDIT_RUNS, AUDIT_OFF)
BACKUPS_SEEN = 'immich_vitals_collector_success{@, collector="backup"} == 1'
DISK_UNKNOWN = (Word("not known", "immich_vitals_build_info{@}"),)
LOGS_FOLLOWED = Word("none", "immich_vitals_log_stream_up{@} == 1", WELL)
LOGS_NOT_FOLLOWED = Word("logs are not followed", "immich_vitals_build_info{@}")
LOG = (LOGS_FOLLOWED, LOGS_NOT_FOLLOWED)

PATH = 'path=~"$path"'
AVAIL = 'immich_vitals_filesystem_avail_bytes{@, path=~"$path"}'
FREE_RATIO = f'{AVAIL} / (immich_vitals_filesystem_size_bytes{{@, path=~"$path"}} > 0)'
FILES_RATIO = 'immich_vitals_filesystem_files_free{@, path=~"$path"} / immich_vitals_filesystem_files{@, path=~"$path"}'
# As instance_path:immich_vitals_filesystem_avail_bytes:seconds_to_full_2h, which needs the rules.
FULL_IN = f"{AVAIL} / -(deriv({AVAIL}[2h]) < 0) and {AVAIL} offset 1h"
# Immich makes these three when it first needs them: never there within a week is no fault.
LATER = "encoded_video|profile|backups"


def by_name(expr: str) -> list[Query]:
    """One series for each path, named by its role; external libraries, which may be several, by the path too."""
    own, external = (expr.replace(PATH, f'{PATH}, role{sign}"external"') for sign in ("!=", "="))
    return [
        Query(f"max by (role) ({own})", "{{role}}"),
        Query(f"max by (role, path) ({external})", "{{role}} {{path}}"),
    ]


# 1 and 0 as they are, but 2 for what was not there in the last week either.
FOUND_NOW = f"""
immich_vitals_filesystem_found{{@, path=~"$path", role=~"{LATER}"}}
+ 2 * (1 - max_over_time(immich_vitals_filesystem_found{{@, path=~"$path", role=~"{LATER}"}}[1w]))
or immich_vitals_filesystem_found{{@, path=~"$path"}}
"""
FOLDER_NOW = f"""
max by (folder) (
  immich_vitals_storage_folder_present{{@, folder=~"$folder", folder=~"{LATER}"}}
  + 2 * (1 - max_over_time(immich_vitals_storage_folder_present{{@, folder=~"$folder", folder=~"{LATER}"}}[1w]))
  or immich_vitals_storage_folder_present{{@, folder=~"$folder"}}
)
"""
# Immich before 1.115 has no markers, and before 1.120 none in backups.
MARKER_NOW = """
max by (folder) (
  immich_vitals_storage_marker_present{@, folder=~"$folder", folder="backups"}
  + 2 * (1 - max_over_time(immich_vitals_storage_marker_present{@, folder=~"$folder", folder="backups"}[1w]))
  or
  immich_vitals_storage_marker_present{@, folder=~"$folder"}
  + 2 * (1 - scalar(max(max_over_time(immich_vitals_storage_marker_present{@}[1w]))))
)
"""


def troubles(signatures: str, words: tuple[Word, ...]) -> str:
    """Events in the time shown by signature and component, or why there are none."""
    matches = f'immich_vitals_log_matches_total{{@, component=~"$component", signature=~"{signatures}"}}'
    return or_words(f"sum by (component, signature) (increase({matches}[$__range])) > {ONE_EVENT}", words, "signature")


def lost(kinds: str) -> Query:
    return Query(f'sum(immich_vitals_file_lost{{@, kind=~"{kinds}"}})')


def sampled(result: str) -> Query:
    return Query(f'sum by (kind) (immich_vitals_file_sampled{{@, result="{result}"}})', table=True)


def access(kind: str) -> Query:
    allowed = f'immich_vitals_storage_access{{@, folder=~"$folder", access="{kind}"}}'
    return Query(f"min by (folder) ({allowed})", table=True)


def board() -> Board:
    made = Board(
        "storage",
        "Is there room, are disks and folders there, may Immich use them, do they hold what the database says, and is"
        " there a copy? The first red row from the top is where to look.",
        filters={
            "path": "immich_vitals_filesystem_responding",
            "folder": "immich_vitals_storage_folder_present",
            "component": "immich_vitals_log_stream_up",
        },
    )
    _room(made)
    _paths(made)
    _folders(made)
    _errors(made)
    _files(made)
    _backups(made)
    return made


def _room(made: Board) -> None:
    made.row("1. Room").add(
        rows(
            "Disks",
            [
                Query(f"max by (role, path) ({AVAIL})", table=True),
                Query('max by (role, path) (immich_vitals_filesystem_size_bytes{@, path=~"$path"})', table=True),
                Query(f"max by (role, path) (1 - {FREE_RATIO})", table=True),
                Query(f"max by (role, path) (1 - {FILES_RATIO})", table=True),
                Query(f"min by (role, path) ({FULL_IN})", table=True),
                Query(
                    f"""
                    max by (role, path) (
                      0 * immich_vitals_filesystem_avail_bytes{{@, path=~"$path", role="external"}} + 2
                      or
                      ({FREE_RATIO} < bool {limit("disk_full_ratio"):g})
                      * ({AVAIL} < bool {limit("disk_full_bytes"):.0f})
                    )
                    """,
                    table=True,
                ),
            ],
            [
                Column("role", "Holds", width=130),
                Column("path", "Path"),
                Column("Value #F", "Room", states=ROOM, width=110),
                Column("Value #A", "Free", unit="bytes", width=100),
                Column("Value #B", "Size", unit="bytes", width=100),
                Column(
                    "Value #C",
                    "In use",
                    unit="percentunit",
                    given=_used("disk_will_fill_ratio", "disk_full_ratio"),
                    width=90,
                ),
                Column(
                    "Value #D",
                    "Files",
                    unit="percentunit",
                    given=_used("inodes_low_ratio", "inodes_full_ratio"),
                    width=90,
                ),
                Column("Value #E", "Full in", unit="s", width=110),
            ],
            "Each disk that Immich writes to; its own folders are named only where they lie on another one than media."
            " Red room: almost full, by ratio and by bytes, so Postgres, Redis and uploads fail in turn. Files is the"
            " part of the inodes in use, and empty where there is no limit; Full in is the pace of two hours, and"
            " empty while room does not shrink. Alerts: ImmichDiskFull, ImmichDiskWillFill, ImmichInodesLow.",
            sort="path",
            w=24,
            h=7,
        ),
        lines(
            "Free part",
            by_name(FREE_RATIO),
            "percentunit",
            "The part of each disk that is free. Bad: below the red line, if it is few bytes as well; below the orange"
            " one a pace that fills it counts. Alerts: ImmichDiskFull, ImmichDiskWillFill.",
            given=((BAD, limit("disk_full_ratio")), (SOON, limit("disk_will_fill_ratio"))),
            w=8,
            most=1.0,
        ),
        lines(
            "Free space",
            by_name(AVAIL),
            "bytes",
            "What programs can still write to each disk. Bad: below the red line, if it is a small part as well."
            " Alert: ImmichDiskFull.",
            given=((BAD, limit("disk_full_bytes")),),
            w=8,
        ),
        lines(
            "Room lost per hour",
            by_name(f"-deriv({AVAIL}[2h]) * 3600"),
            "bytes",
            "The pace at which each disk fills, over two hours; below 0 room was made. Bad: high for long, without an"
            " import. Alert: ImmichDiskWillFill.",
            w=8,
            least=None,
        ),
        number(
            "Full, by two hours' pace",
            Query(f"min({FULL_IN})"),
            "s",
            "When the first disk is full at the pace of the last two hours. Blue: within hours, so stop an import and"
            " make room. Alert: ImmichDiskWillFill, once that disk has little room left.",
            given=((NOTE, None), (WELL, limit("disk_will_fill_seconds"))),
            words=(Word("room does not shrink", f"{AVAIL} offset 1h", WELL),),
            unknown="too early to tell",
            w=8,
        ),
        number(
            "Full, by the week's pace",
            # A recording, since it takes two windows of half a week: without the rules it is unknown.
            Query('min(instance_path:immich_vitals_filesystem_avail_bytes:seconds_to_full_1w{@, path=~"$path"})'),
            "s",
            "When the first disk is full at the pace of the last week. Blue: another week like it fills the disk, so"
            " plan for a larger one. Alert: ImmichDiskWillFill, once that disk has little room left.",
            given=((NOTE, None), (WELL, WEEK_SECONDS)),
            words=(
                Word(
                    "room does not shrink",
                    'instance_path:immich_vitals_filesystem_avail_bytes:delta_84h{@, path=~"$path"} offset 84h',
                    WELL,
                ),
            ),
            unknown="too early to tell",
            w=8,
        ),
        number(
            "Fewest inodes left",
            Query(f"min({FILES_RATIO})"),
            "percentunit",
            "The part of its files that the poorest disk can still make. Red: it takes no new file soon, however much"
            " room is left. Alert: ImmichInodesLow.",
            given=((BAD, None), (SOON, limit("inodes_full_ratio")), (WELL, limit("inodes_low_ratio"))),
            words=(Word("no limit", AVAIL, WELL),),
            decimals=0,
            w=8,
        ),
    )


def _used(soon: str, bad: str) -> tuple[tuple[str, float | None], ...]:
    """The limits are of what is free."""
    return ((PLAIN, None), (SOON, 1 - limit(soon)), (BAD, 1 - limit(bad)))


def _paths(made: Board) -> None:
    made.row("2. Paths and mounts").add(
        timeline(
            "Paths that answer",
            by_name('immich_vitals_filesystem_responding{@, path=~"$path"}'),
            ANSWERS,
            "Each path answers within two seconds. Red: it hangs, as a dead network mount does, or its file system"
            " reports errors; what needs it hangs, too. Alert: ImmichStorageNotResponding.",
            w=8,
            h=9,
        ),
        timeline(
            "Paths that are there",
            by_name(FOUND_NOW),
            FOUND,
            "Each path exists. Red: a disk or share is not mounted, or a folder was moved; do not restart Immich."
            " Blue: Immich makes this folder when it first needs it. Alert: ImmichMediaMountMissing.",
            w=8,
            h=9,
        ),
        timeline(
            "Disks that take writes",
            by_name(
                """
                    0 * immich_vitals_filesystem_readonly{@, path=~"$path", role="external"} + 2
                    or 1 - immich_vitals_filesystem_readonly{@, path=~"$path"}
                    """
            ),
            WRITES,
            "The file system itself takes writes. Red: it was made read-only, most often by Linux after an error of"
            " its disk. External libraries are only read, so they may be. Alert: ImmichFilesystemReadOnly.",
            w=8,
            h=9,
        ),
        rows(
            "File systems",
            Query(
                """
                max by (role, path, fstype, kind, device) (
                  2 * immich_vitals_filesystem_info{@, path=~"$path", role="database", kind="unsupported"}
                  or immich_vitals_filesystem_info{@, path=~"$path", role="database", kind=~"network|fuse"}
                  or 3 * immich_vitals_filesystem_info{@, path=~"$path", kind="unsupported"}
                  or 0 * immich_vitals_filesystem_info{@, path=~"$path"}
                )
                """,
                table=True,
            ),
            [
                Column("role", "Holds", width=130),
                Column("path", "Path"),
                Column("Value", "Fitness", states=FITS, width=160),
                Column("fstype", "Type", width=110),
                Column("kind", "Kind", width=110),
                Column("device", "Device", width=100),
            ],
            "What each path lies on; paths of one device number share their room and their fate. Red: Postgres does"
            " not start there or loses data; orange: it is slow, and may not survive a failing network or power."
            " Alerts: ImmichDatabaseOnUnsupportedFilesystem, ImmichDatabaseOnNetworkFilesystem.",
            sort="path",
            w=24,
        ),
    )


def _folders(made: Board) -> None:
    made.row("3. Immich's six folders").add(
        rows(
            "Folders now",
            [
                Query(FOLDER_NOW, table=True),
                Query(MARKER_NOW, table=True),
                # Nobody looks for Immich's folders in backups.
                Query(
                    """
                    min by (folder) (1 - immich_vitals_storage_nested{@, folder=~"$folder"})
                    or 2 + 0 * max by (folder) (
                      immich_vitals_storage_folder_present{@, folder=~"$folder", folder="backups"}
                    )
                    """,
                    table=True,
                ),
                access("enter"),
                access("read"),
                access("write"),
            ],
            [
                Column("folder", "Folder"),
                Column("Value #A", "Folder is", states=FOUND),
                Column("Value #B", "Marker is", states=MARKED),
                Column("Value #C", "Contents", states=PLACED),
                Column("Value #D", "Enter", states=ALLOWED),
                Column("Value #E", "Read", states=ALLOWED),
                Column("Value #F", "Write", states=ALLOWED),
            ],
            "Immich's folders, their file .immich, and what the user of the server's container may do in them. Red:"
            " another disk or none is mounted, or owner and mode are wrong; look before any chown, and make no marker"
            " anew. Alerts: ImmichMediaMountMissing, ImmichMarkerMissing, ImmichNestedMedia, ImmichMediaNotReadable,"
            " ImmichMediaNotWritable.",
            sort="folder",
            w=24,
            h=8,
        ),
        timeline(
            "Marker files",
            Query(MARKER_NOW, "{{folder}}"),
            MARKED,
            "Each folder holds its file .immich, without which the server does not start. Red: it was there, or the"
            " others have it. Blue: older versions of Immich make none. Alert: ImmichMarkerMissing.",
            w=8,
            h=7,
        ),
        timeline(
            "Folders in folders",
            Query('min by (folder) (1 - immich_vitals_storage_nested{@, folder=~"$folder"})', "{{folder}}"),
            PLACED,
            "No folder holds Immich's folders once more. Orange: a backup was restored one level too deep, and Immich"
            " does not find the photos in it; delete nothing. Alert: ImmichNestedMedia.",
            w=8,
            h=7,
        ),
        timeline(
            "Access",
            Query(
                """
                min by (folder) (immich_vitals_storage_access{@, folder=~"$folder"})
                or on (folder) max by (folder) (0 * immich_vitals_storage_folder_present{@, folder=~"$folder"} - 1)
                """,
                "{{folder}}",
            ),
            ALLOWED,
            "The user of the server's container may enter, read and write each folder, as owner, mode and mounts say."
            " Red: one of these is refused; the table says which. Grey: that user is not known, as without Docker."
            " Alerts: ImmichMediaNotReadable, ImmichMediaNotWritable.",
            w=8,
            h=7,
        ),
    )


def _errors(made: Board) -> None:
    made.row("4. Errors of disks and folders").add(
        number(
            "Look into the folders",
            Query("max(immich_vitals_storage_io_error{@})"),
            "none",
            "What the exporter met itself when it looked into the folders. Red: the file system or its disk reports an"
            " error; make a backup of what can still be read. Alert: ImmichStorageIOErrors.",
            states=(State(0, "no error", WELL), State(1, "I/O errors", BAD)),
            w=6,
        ),
        number(
            "Changes of the root",
            Query("sum(increase(immich_vitals_storage_root_changes_total{@}[$__range]))"),
            "short",
            "How often, in the time shown, the media folder or the disk of a folder in it was replaced by another one."
            " Bad: any that nobody made; new photos may go to the wrong disk. Alerts: ImmichMediaMountMissing,"
            " ImmichMarkerMissing.",
            given=((WELL, None), (BAD, ONE_EVENT)),
            decimals=0,
            w=6,
        ),
        number(
            "Write probe",
            Query("min(immich_vitals_storage_write_probe_success{@})"),
            "none",
            "One small file could be written, synced, read back and removed in the media folder;"
            " IMMICH_VITALS_WRITE_PROBE switches it on. Red: uploads fail, too. Alert: ImmichMediaNotWritable.",
            states=(State(1, "works", WELL), State(0, "fails", BAD)),
            words=(Word("switched off", "immich_vitals_storage_io_error{@}"),),
            w=6,
        ),
        number(
            "Check at the start",
            Query(
                """
                sum(increase(
                  immich_vitals_log_matches_total{@,
                    component=~"server|microservices", signature="mount_check_failed"
                  }[$__range]
                ))
                """,
            ),
            "short",
            "How often, in the time shown, the server stopped because its own check of the folders failed. Bad: any;"
            " it sees another folder than the exporter, or may not use it. Alert: ImmichMarkerMissing.",
            given=((WELL, None), (BAD, ONE_EVENT)),
            words=(LOGS_NOT_FOLLOWED,),
            decimals=0,
            w=6,
        ),
        rows(
            "Troubles in the logs",
            Query(troubles("io_error|no_space|permission_denied|mount_check_failed|file_missing", LOG), table=True),
            [
                Column("signature", "Trouble", texts=spoken(LOG)),
                Column("component", "Part", width=180),
                Column("Value", "Events", unit="short", states=blank(LOG)),
            ],
            "What the logs told of disks, room and permissions in the time shown. Bad: io_error and no_space, where"
            " one is enough; permission_denied again and again. Alerts: ImmichStorageIOErrors, ImmichNoSpaceReported,"
            " ImmichMediaNotWritable, ImmichMarkerMissing.",
            sort="Value",
            descending=True,
            w=24,
            h=5,
        ),
    )


def _files(made: Board) -> None:
    thumbnails = limit("lost_thumbnails") + 1
    made.row("5. The database against the disk").add(
        number(
            "Originals lost",
            lost("original"),
            "short",
            "Originals that the database names and the disk does not have, or has empty, as far as samples and the"
            " audit looked. Red: photos are gone; stop whatever deletes or syncs. Alert: ImmichOriginalsMissing.",
            given=((WELL, None), (BAD, limit("lost_originals") + 1)),
            words=(FILE_OFF,),
            w=6,
        ),
        number(
            "Made files lost",
            lost("preview|thumbnail|encoded_video|person|profile"),
            "short",
            "Thumbnails and other files that Immich made and that are gone or empty. Orange: these photos are grey or"
            " do not open; they can be made anew once the disk is right. Alert: ImmichThumbnailFilesMissing.",
            given=((WELL, None), (SOON, thumbnails)),
            words=(FILE_OFF,),
            w=6,
        ),
        number(
            "Age of the sample",
            Query("time() - max(immich_vitals_file_sample_timestamp_seconds{@})"),
            "s",
            "How long ago files were last compared with the database; IMMICH_VITALS_FILE_INTERVAL sets how often. Bad:"
            " a day, since lost files show that much later. No alert speaks of it.",
            words=(FILE_OFF,),
            w=6,
        ),
        number(
            "Left in upload",
            Query("max(immich_vitals_file_template_leftovers{@})"),
            "short",
            "Uploads older than a day that still lie in upload although the storage template is on. Blue: they open,"
            " but the migration of the template was not run. Alert: ImmichStorageTemplateLeftovers.",
            given=((WELL, None), (NOTE, limit("template_leftovers") + 1)),
            words=(FILE_OFF, Word("no template", "immich_vitals_file_sample_timestamp_seconds{@}")),
            w=6,
        ),
        rows(
            "Sample",
            [
                sampled("ok"),
                sampled("missing"),
                sampled("empty"),
                sampled("unreadable"),
                sampled("unmapped"),
                Query("sum by (kind) (immich_vitals_file_lost{@})", table=True),
            ],
            [
                Column("kind", "Files"),
                Column("Value #A", "Fine", unit="short"),
                Column("Value #B", "Missing", unit="short", given=((PLAIN, None), (SOON, 1))),
                Column("Value #C", "Empty", unit="short", given=((PLAIN, None), (SOON, 1))),
                Column("Value #D", "Unreadable", unit="short"),
                Column("Value #E", "Not seen", unit="short"),
                Column("Value #F", "Lost in all", unit="short"),
            ],
            "The last random sample, by what became of each file. Bad: missing or empty. Not seen: the exporter has no"
            " such folder, or its disk sleeps, so nothing is known. External libraries are shown and never lost."
            " Alerts: ImmichOriginalsMissing, ImmichThumbnailFilesMissing.",
            sort="kind",
            w=14,
        ),
        lines(
            "Lost files",
            Query("sum by (kind) (immich_vitals_file_lost{@})", "{{kind}}"),
            "short",
            "Lost files by kind, a thousand of each at most. Bad: originals at all; a step is the hour in which"
            " something deleted or moved them. Alerts: ImmichOriginalsMissing, ImmichThumbnailFilesMissing.",
            w=10,
        ),
        rows(
            "Paths of originals",
            Query("sum by (prefix, reachable) (immich_vitals_file_path_prefix_assets{@})", table=True),
            [
                Column("prefix", "Paths begin with"),
                Column(
                    "reachable",
                    "Leads somewhere",
                    texts={"1": ("yes", WELL), "0": ("no", BAD), "unknown": ("not seen", UNKNOWN)},
                    width=150,
                ),
                Column("Value", "Photos", unit="short", width=100),
            ],
            "Where the database says that the originals are. Red: nothing is mounted there for the server, so they do"
            " not open; change no path in the database. Alert: ImmichMediaPathMoved.",
            sort="Value",
            descending=True,
            w=8,
            h=8,
            empty="switched off",
        ),
        number(
            "Audit",
            Query("max(immich_vitals_file_audit_progress_ratio{@})"),
            "percentunit",
            "How far the slow audit of all files is in its pass; IMMICH_VITALS_FILE_AUDIT switches it on. Bad: the"
            " same for days. No alert speaks of it.",
            words=(FILE_OFF, AUDIT_OFF),
            decimals=0,
            w=4,
            h=8,
        ),
        number(
            "Last whole audit",
            Query("time() - max(immich_vitals_file_audit_completed_timestamp_seconds{@})"),
            "s",
            "How long ago the audit last came to the end of all files. Bad: much longer than a pass takes. No alert"
            " speaks of it.",
            words=AUDIT,
            w=4,
            h=8,
        ),
        rows(
            "Result of the audit",
            Query(
                or_words("sum by (kind, result) (immich_vitals_file_audited{@}) > 0", AUDIT, "kind"),
                table=True,
            ),
            [
                Column("kind", "Files", texts=spoken(AUDIT)),
                Column(
                    "result",
                    "Result",
                    texts={
                        "ok": ("fine", WELL),
                        "missing": ("missing", SOON),
                        "empty": ("empty", SOON),
                        "unreadable": ("unreadable", UNKNOWN),
                        "unmapped": ("not seen", UNKNOWN),
                    },
                    width=120,
                ),
                Column("Value", "Count", unit="short", states=blank(AUDIT)),
            ],
            "All files, as the last whole pass of the audit found them. Bad: missing or empty originals, of which this"
            " is the full number. Alerts: ImmichOriginalsMissing, ImmichThumbnailFilesMissing.",
            sort="kind",
            w=8,
            h=8,
        ),
    )


def _backups(made: Board) -> None:
    age = "time() - max by (kind) (immich_vitals_backup_newest_timestamp_seconds{@})"
    interval = "max by (kind) (immich_vitals_backup_interval_seconds{@})"
    failed = """
    max(
      immich_vitals_backup_failure_timestamp_seconds{@}
      or immich_vitals_log_last_match_timestamp_seconds{@, signature="backup_failed"}
    )
    """
    made.row("6. Backups").add(
        rows(
            "Backups",
            [
                Query("max by (kind) (immich_vitals_backup_count{@})", table=True),
                Query(age, table=True),
                Query(interval, table=True),
                Query(
                    f"""
                    {age} > bool {BACKUP_MISSED} * {interval} + {BACKUP_GRACE_SECONDS}
                    or on (kind) {age} > bool {limit("backup_age_seconds"):.0f}
                    """,
                    table=True,
                ),
                Query("max by (kind) (immich_vitals_backup_newest_size_bytes{@})", table=True),
                Query("max by (kind) (immich_vitals_backup_previous_size_bytes{@})", table=True),
                Query("min by (kind) (immich_vitals_backup_intact{@})", table=True),
            ],
            [
                Column("kind", "Backup of the"),
                Column("Value #D", "In time", states=LATE),
                Column("Value #B", "Age of the newest", unit="s"),
                Column("Value #C", "At least every", unit="s"),
                Column("Value #G", "Whole", states=YES_NO),
                Column("Value #E", "Size", unit="bytes"),
                Column("Value #F", "Size before", unit="bytes"),
                Column("Value #A", "There are", unit="short", given=((BAD, None), (PLAIN, 1))),
            ],
            "Dumps of the database, and copies of the media folder where IMMICH_VITALS_MEDIA_BACKUPS names them."
            " Orange: two turns were missed; red: the newest dump cannot be restored, or there is none. What is grey"
            " is not known, as for copies whose form we do not read. Alerts: ImmichBackupStale,"
            " ImmichMediaBackupStale, ImmichBackupIncomplete.",
            sort="kind",
            w=24,
            h=5,
        ),
        lines(
            "Age of the newest",
            Query(age, "{{kind}}"),
            "s",
            "A saw whose teeth are as high as the time between two backups. Bad: a tooth that goes on growing. Alerts:"
            " ImmichBackupStale, ImmichMediaBackupStale.",
            w=8,
        ),
        lines(
            "Size of the newest",
            Query("max by (kind) (immich_vitals_backup_newest_size_bytes{@})", "{{kind}}"),
            "bytes",
            "How large the newest dump is. Bad: a step down, for then something is no longer in it, or no longer in"
            " the database. Alert: ImmichBackupShrunk.",
            w=8,
        ),
        rows(
            "Same disk",
            Query(
                or_words(
                    """
                    max by (kind, as) (
                      2 * immich_vitals_backup_same_filesystem{@, kind="media", as="media"}
                      or immich_vitals_backup_same_filesystem{@}
                    )
                    """,
                    DISK_UNKNOWN,
                    "kind",
                ),
                table=True,
            ),
            [
                Column("kind", "Backup of", texts=spoken(DISK_UNKNOWN)),
                Column("as", "Beside"),
                Column("Value", "Is on", states=(*SAME_DISK, *blank(DISK_UNKNOWN))),
            ],
            "Whether the newest backup would die with the disk of what it is a copy of. Orange: the copy of the photos"
            " lies beside them; blue: so do the dumps. Alert: ImmichBackupOnSameDisk.",
            sort="kind",
            descending=True,
            w=8,
        ),
        number(
            "Immich's own dumps",
            Query("max(immich_vitals_backup_scheduled{@})"),
            "none",
            "Whether Immich's settings have its nightly dump switched on. Blue: off, so that another tool must make"
            " them. Alert: ImmichBackupStale, which is silent while they are off.",
            states=(State(1, "on", WELL), State(0, "switched off", NOTE)),
            words=(Word("another tool's", BACKUPS_SEEN),),
            w=5,
        ),
        number(
            "Newest against last",
            Query(
                """
                min(
                  immich_vitals_backup_newest_size_bytes{@, kind="database"}
                  / immich_vitals_backup_previous_size_bytes{@, kind="database"}
                )
                """,
            ),
            "percentunit",
            "Size of the newest dump as a part of the one before. Orange: half of it is gone; copy the older one to a"
            " safe place. Alert: ImmichBackupShrunk.",
            given=((SOON, None), (WELL, limit("backup_shrunk_ratio"))),
            words=(Word("none to compare", BACKUPS_SEEN),),
            decimals=0,
            w=5,
        ),
        number(
            "Last dump",
            Query(
                f"""
                max(immich_vitals_backup_newest_timestamp_seconds{{@, kind="database"}}) > bool ({failed})
                or max(immich_vitals_backup_newest_timestamp_seconds{{@, kind="database"}}) ^ 0
                or 0 * ({failed})
                """,
            ),
            "none",
            "Whether Immich could make its last dump, by its own notice or its log. Orange: it failed, and none has"
            " succeeded since. Alert: ImmichBackupFailed.",
            states=(State(1, "succeeded", WELL), State(0, "failed", SOON)),
            w=5,
        ),
        number(
            "Last failure",
            Query(f"time() - {failed}"),
            "s",
            "How long ago one of Immich's own dumps failed. Bad: later than the newest dump, which the panel beside it"
            " says. Alert: ImmichBackupFailed.",
            words=(Word("none known", BACKUPS_SEEN, WELL),),
            w=5,
        ),
        number(
            "Last restore test",
            Query("time() - max(immich_vitals_backup_restore_test_timestamp_seconds{@})"),
            "s",
            "How long ago somebody tried a restore and touched IMMICH_VITALS_RESTORE_TEST_FILE. Blue: half a year, or"
            " never; a backup that was never tried is a hope. Alert: ImmichRestoreTestOverdue.",
            given=((WELL, None), (NOTE, limit("restore_test_seconds"))),
            words=(Word("never noted", BACKUPS_SEEN, NOTE),),
            w=4,
        ),
    )

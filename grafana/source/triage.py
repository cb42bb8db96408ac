"""Triage: the one screen to open first, in the order of the guide."""

from grafana.source import rulebook, shared
from grafana.source.kit import (
    BAD,
    BOARDS,
    NOTE,
    PLAIN,
    RUNBOOKS,
    SOON,
    UNKNOWN,
    WELL,
    YES_NO,
    Board,
    Column,
    Query,
    State,
    bars,
    limit,
    lines,
    number,
    or_none,
    rows,
    timeline,
)

# The steps of the troubleshooting guide, as docs/runbooks/README.md has them.
STEPS = (
    "Services run",
    "Logs",
    "Storage and mounts",
    "Permissions",
    "Postgres",
    "Jobs and Redis",
    "Thumbnails",
    "Proxy and network",
    "Disk and memory",
    "Upgrades",
    "Backups and damage",
)
WORST = (
    State(0, "fine", WELL),
    State(1, "note", NOTE),
    State(2, "warning", SOON),
    State(3, "critical", BAD),
    State(-1, "unknown", UNKNOWN),
)
SEVERITY = {"critical": ("critical", BAD), "warning": ("warning", SOON), "info": ("note", NOTE), "": ("", PLAIN)}
# Alerts have the labels of what they watch; the few that have no instance concern every Immich.
FIRING = 'cluster=~"$cluster", instance=~"$instance|", alertstate="firing"'
OTHERS = f'{FIRING}, alertname!="{rulebook.HEARTBEAT}"'
# Nothing is fine because it is silent: the rules must be there, and a scrape of this Immich.
HEARTBEAT = f'ALERTS{{cluster=~"$cluster", instance=~"$instance", alertname="{rulebook.HEARTBEAT}"}}'
WATCHED = f"max(immich_vitals_build_info{{@}}) and on () {HEARTBEAT}"
LINK = "/d/immich-vitals-${__value.raw}?${__url_time_range}&${datasource:queryparam}&${job:queryparam}"
CONTAINERS = (State(2, "running", WELL), State(1, "unhealthy", BAD), State(0, "not running", BAD))
PRESENT = (State(1, "there", WELL), State(0, "missing", BAD))
ALLOWED = (State(1, "allowed", WELL), State(0, "refused", BAD))
WORKS = (State(1, "works", WELL), State(0, "fails", BAD))
ANSWERS = (State(1, "answers", WELL), State(0, "does not answer", BAD))


def worst(step: int) -> str:
    """0 while nothing of the step fires, else 1 to 3 by the worst that does; -1 while nobody watches."""
    severities = " or ".join(
        f'{value} * max(ALERTS{{{OTHERS}, step="{step}", severity="{severity}"}})'
        for value, severity in ((3, "critical"), (2, "warning"), (1, "info"))
    )
    return f"max({severities} or 0 * ({WATCHED})) or vector(-1)"


def steps() -> list[Query]:
    return [Query(worst(place), f"{place}. {step}") for place, step in enumerate(STEPS, start=1)]


def firing() -> str:
    """When each alert that fires began, with the word of its dashboard; one line in words when none does."""
    began = 'ALERTS_FOR_STATE{cluster=~"$cluster", instance=~"$instance|"}'
    since = f"{began} and ignoring (alertstate) ALERTS{{{OTHERS}}}"
    for name in BOARDS:
        names = "|".join(alert.name for alert in rulebook.alerts() if alert.board == name)
        since = f'label_replace({since}, "board", "{name}", "alertname", "{names}")'
    # NaN: a line in words has no moment.
    unwatched = f'label_replace(vector(NaN) unless on () {HEARTBEAT}, "alertname", "{rulebook.HEARTBEAT}", "", "")'
    nothing = f'label_replace(vector(NaN) unless on () ALERTS{{{OTHERS}}}, "alertname", "README", "", "")'
    return f"1000 * ({since}) or {unwatched} or ({nothing} unless on () {unwatched})"


def board() -> Board:
    made = Board(
        "triage",
        "Why do the photos not load, and what to fix first? The first red step from the top is where to look.",
        fleet=True,
        filters={"collector": "immich_vitals_collector_enabled", "component": "immich_vitals_log_stream_up"},
    )
    made.add(
        rows(
            "Fix this first",
            Query(firing(), table=True),
            [
                Column(
                    "alertname",
                    "Alert",
                    texts={
                        "README": ("Nothing: all is well", WELL),
                        rulebook.HEARTBEAT: ("Nobody watches: no data, or no rules", BAD),
                    },
                    url=f"{RUNBOOKS}/${{__value.raw}}.md",
                    url_title="Runbook: what it means, what to do",
                ),
                Column("severity", "Severity", texts=SEVERITY, width=100),
                Column("Value", "Since", unit="dateTimeFromNow", width=140),
                Column(
                    "board",
                    "Look at",
                    texts={key: (title, PLAIN) for key, title in BOARDS.items()},
                    url=LINK + "&${cluster:queryparam}&var-instance=${__data.fields.Immich}",
                    url_title="Its dashboard",
                    width=180,
                ),
                Column("component", "Part", width=150),
                Column("instance", "Immich", width=160),
            ],
            "Alerts that fire, the nearest to the cause on top: begin there, most of the others are its consequences."
            " A name opens its runbook. `Nobody watches` means that Prometheus has no data of this exporter, or has not"
            " loaded rules/*.rules.yml.",
            sort="rank",
            w=24,
            h=6,
        ),
        number(
            "Steps now",
            steps(),
            "none",
            "The steps of the guide, from what Immich stands on to what it has made. The first red one from the top is"
            " where to look: what stands below it often only follows from it. Its facts are in the part of the same"
            " number below. A step is as bad as the worst of its alerts.",
            states=WORST,
            names=True,
            w=8,
            h=13,
        ),
        timeline(
            "Steps over time",
            steps(),
            WORST,
            "Since when. The step that turned red first is nearest to the cause. Grey: no alert could fire then, since"
            " Prometheus had no data of the exporter or no rules.",
            w=16,
            h=13,
        ),
    )
    made.row("1. Services run and are healthy").add(
        timeline(
            "Containers",
            Query(
                """
                max by (component) (immich_vitals_container_state{@, state="running"})
                * (2 - max by (component) (immich_vitals_container_health{@, health="unhealthy"}))
                or
                max by (component) (immich_vitals_container_found{@}) == 0
                """,
                "{{component}}",
            ),
            CONTAINERS,
            "Each part of Immich has a container that runs and is not unhealthy. Red: that part is down, or says itself"
            " that it is not well. Alerts: ImmichContainerDown, ImmichContainerUnhealthy, ImmichServiceMissing.",
            w=16,
        ),
        number(
            "Ends of containers",
            Query("sum(increase(immich_vitals_container_exits_total{@}[$__range]))"),
            "short",
            "How often a container of Immich ended in the time shown. A few after an upgrade are normal; many are a"
            " restart loop. Alerts: ImmichRestartLoop, ImmichContainerOOMKilled.",
            w=4,
            h=6,
            decimals=0,
        ),
        number(
            "Killed for memory",
            Query("sum(increase(immich_vitals_container_oom_events_total{@}[$__range]))"),
            "short",
            "How often a container reached its memory limit and lost a process in the time shown. Bad: any. Alert:"
            " ImmichContainerOOMKilled.",
            given=((WELL, None), (BAD, 1)),
            w=4,
            h=6,
            decimals=0,
        ),
    )
    made.row("2. What the logs say").add(
        lines(
            "Known troubles in the logs",
            Query(
                "sum by (component) (increase(immich_vitals_log_matches_total{@}[$__rate_interval]))", "{{component}}"
            ),
            "short",
            "Events in the logs that tell of a known trouble. A few are everyday; a wall that begins at one moment is"
            " the hour to look at. Alerts: those of the step that the trouble belongs to, and ImmichLogErrors.",
            bars=True,
        ),
        rows(
            "Which troubles",
            Query(
                or_none(
                    "sum by (component, signature) (increase(immich_vitals_log_matches_total{@}[$__range])) > 0.5",
                    "signature",
                ),
                table=True,
            ),
            [
                Column("signature", "Trouble", texts={"none": ("none", WELL)}),
                Column("component", "Part", width=160),
                Column("Value", "Events", unit="short", width=90),
            ],
            "What the logs told of in the time shown, most often first. `immich-vitals log-match` says of a line what"
            " it counts as. Alerts: ImmichLogErrors and those that the trouble belongs to.",
            sort="Value",
            descending=True,
        ),
    )
    made.row("3. Storage paths and mounts").add(
        timeline(
            "Immich's folders",
            Query(
                "min by (folder) (immich_vitals_storage_folder_present{@} * immich_vitals_storage_marker_present{@})",
                "{{folder}}",
            ),
            PRESENT,
            "The six folders are there and hold their file .immich. Red: the disk is not mounted, or another one is;"
            " upload nothing and regenerate nothing. Alerts: ImmichMediaMountMissing, ImmichMarkerMissing.",
            w=12,
        ),
        timeline(
            "Paths that answer",
            Query("min by (role) (immich_vitals_filesystem_responding{@})", "{{role}}"),
            ANSWERS,
            "Every path that Immich lives on answers within two seconds. Red: a dead network mount, or a disk with"
            " errors. Alerts: ImmichStorageNotResponding, ImmichStorageIOErrors.",
            w=12,
        ),
    )
    made.row("4. Permissions").add(
        timeline(
            "May Immich use its folders",
            Query("min by (folder) (immich_vitals_storage_access{@})", "{{folder}}"),
            ALLOWED,
            "The user of the server's container may enter, read and write each folder. Red: wrong owner or mode; look"
            " before any chown. Alerts: ImmichMediaNotWritable, ImmichMediaNotReadable.",
            w=12,
        ),
        timeline(
            "File systems that take writes",
            Query("1 - max by (role) (immich_vitals_filesystem_readonly{@})", "{{role}}"),
            (State(1, "writable", WELL), State(0, "read-only", BAD)),
            "The file system itself takes writes. Red: the kernel made it read-only after an error of its disk. Alert:"
            " ImmichFilesystemReadOnly.",
            w=12,
        ),
    )
    made.row("5. Postgres").add(
        timeline(
            "Postgres",
            [
                Query("min(immich_vitals_postgres_up{@})", "answers"),
                Query("min(immich_vitals_postgres_writable{@})", "takes writes"),
                Query("1 - max(immich_vitals_postgres_collation_mismatch{@})", "sorts as it did"),
            ],
            WORKS,
            "Postgres answers, takes writes, and sorts as when the database was made. Red: nothing of Immich works, or"
            " lookups miss what is there. Alerts: ImmichPostgresDown, ImmichPostgresReadOnly,"
            " ImmichPostgresCollationMismatch.",
            w=16,
        ),
        number(
            "Damaged pages",
            Query(
                "sum(immich_vitals_postgres_checksum_failures_total{@})",
            ),
            "short",
            "Damaged pages that Postgres met since its statistics began. Any is bad, and 0 is no proof: pages that"
            " nobody reads are not counted. Alerts: ImmichPostgresChecksumFailures, ImmichPostgresCorruption.",
            given=((WELL, None), (BAD, 1)),
            h=6,
        ),
        number(
            "Connections in use",
            Query(
                """
                max(
                  sum by (instance) (immich_vitals_postgres_connections{@})
                  / max by (instance) (immich_vitals_postgres_connections_max{@})
                )
                """,
            ),
            "percentunit",
            "Part of the connections that Postgres allows. Bad: near all, then Immich cannot log in. Alert:"
            " ImmichPostgresConnectionsNearLimit.",
            given=((WELL, None), (SOON, limit("postgres_connections_ratio"))),
            h=6,
            decimals=0,
        ),
    )
    made.row("6. Background jobs and Redis").add(
        timeline(
            "Redis and its queues",
            [
                Query("min(immich_vitals_redis_up{@})", "Redis answers"),
                Query("min(immich_vitals_redis_writable{@})", "Redis takes writes"),
                Query("1 - max(immich_vitals_queue_paused{@})", "no queue is paused"),
                Query("min(immich_vitals_queue_workers{@} > bool 0)", "queues have workers"),
            ],
            WORKS,
            "Redis answers and takes writes, no queue is paused, each has a worker. Red: uploads stay without"
            " thumbnails. Alerts: ImmichRedisDown, ImmichRedisNotWritable, ImmichQueuePaused, ImmichQueueNoWorkers.",
            w=12,
        ),
        lines(
            "Jobs that wait",
            Query(
                'topk(8, sum by (queue) (immich_vitals_queue_jobs{@, state=~"waiting|prioritized|paused|delayed"}))',
                "{{queue}}",
            ),
            "short",
            "The longest queues. A hill after an import is normal; a plain that does not fall is a queue that stands"
            " still. Alerts: ImmichQueueStalled, ImmichQueueNotDraining.",
            w=12,
            h=6,
        ),
    )
    made.row("7. Thumbnails and derived files").add(
        shared.assets_that_have_it(w=16, h=8),
        shared.never_processed(h=8),
        number(
            "Files lost",
            Query("sum(immich_vitals_file_lost{@})"),
            "short",
            "Files that are in the database and not on the disk, as far as samples and the audit looked. Alerts:"
            " ImmichOriginalsMissing, ImmichThumbnailFilesMissing.",
            given=((WELL, None), (BAD, limit("lost_originals") + 1)),
            h=8,
        ),
    )
    made.row("8. Proxy and network").add(
        timeline(
            "Immich as its users meet it",
            Query("min by (probe, route) (immich_vitals_probe_success{@})", "{{probe}} {{route}}"),
            WORKS,
            "Each probe beside the proxy (direct) and through it (external). Red only where it says external: the"
            " proxy, its certificate or the name. Alerts: ImmichServerUnreachable, ImmichProxyUnreachable,"
            " ImmichImageLoadFailing, ImmichWebsocketBroken.",
            w=16,
            h=7,
        ),
        shared.first_byte(w=8, h=7),
    )
    made.row("9. Disk and memory").add(
        bars(
            "Disk space in use",
            Query(
                """
                1 - min by (role) (
                  immich_vitals_filesystem_avail_bytes{@} / (immich_vitals_filesystem_size_bytes{@} > 0)
                )
                """,
                "{{role}}",
            ),
            "percentunit",
            "Part of each disk that is used. Red: almost full, so Postgres, Redis and uploads will fail in turn."
            " Alerts: ImmichDiskFull, ImmichDiskWillFill.",
            ((WELL, None), (SOON, 1 - limit("disk_will_fill_ratio")), (BAD, 1 - limit("disk_full_ratio"))),
            most=1.0,
            w=12,
            h=7,
        ),
        shared.memory_available(w=12, h=7),
    )
    made.row("10. Upgrades").add(
        rows(
            "Versions",
            Query("max by (instance, component, version) (immich_vitals_version_info{@})", table=True),
            [
                Column("component", "Part"),
                Column("version", "Version"),
                Column("instance", "Immich", width=160),
            ],
            "What runs. Bad: parts of different versions. Alerts: ImmichVersionSkew, ImmichMigrationFailed.",
            sort="component",
            w=12,
            h=5,
        ),
        shared.parts_fit(w=6, h=5),
        shared.latest_release(w=6, h=5),
    )
    made.row("11. Backups and damaged data").add(
        number(
            "Age of the newest backup",
            Query("time() - max by (kind) (immich_vitals_backup_newest_timestamp_seconds{@})", "{{kind}}"),
            "s",
            "How old the newest dump of the database and the newest copy of the photos are. Bad: two missed turns."
            " Alerts: ImmichBackupStale, ImmichMediaBackupStale.",
            names=True,
            w=8,
            h=5,
        ),
        number(
            "Newest dump is whole",
            Query("min(immich_vitals_backup_intact{@})"),
            "none",
            "The newest dump was read to its end. Alert: ImmichBackupIncomplete.",
            states=YES_NO,
            w=8,
            h=5,
        ),
        lines(
            "Assets in the library",
            Query('sum(immich_vitals_library_assets{@, state!="trashed"})', "assets"),
            "short",
            "All photos and videos outside the trash. A cliff is a mass deletion, or another database. Alerts:"
            " ImmichMassDeletion, ImmichDatabaseRolledBack, ImmichDatabaseEmpty.",
            w=8,
            h=5,
        ),
    )
    made.row("The watch itself").add(
        timeline(
            "Collectors",
            Query('min by (collector) (immich_vitals_collector_success{@, collector=~"$collector"})', "{{collector}}"),
            WORKS,
            "Each collector got its answer. Red: its values are missing, so its alerts stay silent; `immich-vitals"
            " check` says what to mend. Alerts: ImmichCollectorFailing, ImmichExporterDown.",
            w=16,
            h=10,
        ),
        shared.logs_followed(w=8, h=10),
    )
    return made

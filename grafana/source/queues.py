"""Queues and library: Redis, the jobs in it, and what they have made of the photos so far."""

from grafana.source import shared
from grafana.source.kit import (
    BAD,
    NOTE,
    PLAIN,
    SOON,
    WELL,
    YES_NO,
    Board,
    Column,
    Query,
    State,
    happened,
    limit,
    lines,
    number,
    rows,
    timeline,
)
from grafana.source.shared import COVERAGE, PENDING, REQUIRED, STAGES

WORKS = (State(1, "yes", WELL), State(0, "no", BAD))
# Of several that hold for a queue the largest is shown, in the order in which its alerts exclude each other.
QUEUE = (
    State(0, "idle", WELL),
    State(1, "works", WELL),
    State(2, "paused, empty", NOTE),
    State(3, "orphaned jobs", SOON),
    State(4, "stands still", BAD),
    State(5, "no workers", BAD),
    State(6, "paused with jobs", SOON),
)
DATABASE = (
    State(0, "the same", WELL),
    State(1, "went back in time", BAD),
    State(2, "another one", BAD),
    State(3, "empty", BAD),
)
# Immich 1.92 and 1.93 dropped them: jobs that wait there wait for ever, and nobody misses them.
DROPPED = "objectTagging|recognizeFaces"
BACKLOG = 'sum by (queue) (immich_vitals_queue_jobs{@, queue=~"$queue", state!="failed"})'
READY = f'queue=~"$queue", queue!~"{DROPPED}", state=~"waiting|prioritized"'
WAITING = 'sum by (queue) (immich_vitals_queue_jobs{@, queue=~"$queue", state=~"waiting|prioritized|paused|delayed"})'
COMPLETED = 'immich_vitals_queue_events_total{@, queue=~"$queue", event="completed"}'
DONE = f"60 * sum by (queue) (rate({COMPLETED}[$__rate_interval]))"
# From raw counts, so that it is there without rules; those also leave out a database that was empty for a while.
LEAST = f"sum by (stage) (min_over_time(immich_vitals_library_pending{{@, {STAGES}}}[7d]))"
PRESENT = "instance:immich_vitals_library_present:sum{@}"
FAILURES = "job_failed|thumbnail_failed|media_failed"


def queue_states() -> str:
    """One number per queue, as `QUEUE` has them."""
    paused = 'max by (queue) (immich_vitals_queue_paused{@, queue=~"$queue"}) == 1'
    ready = f"sum by (queue) (immich_vitals_queue_jobs{{@, {READY}}})"
    workers = 'sum by (queue) (immich_vitals_queue_workers{@, queue=~"$queue"})'
    orphaned = 'sum by (queue) (immich_vitals_queue_orphaned_jobs{@, queue=~"$queue"})'
    # A recording, since it looks back over hours: the rules tell what stands still from what takes long.
    stalled = 'sum by (queue) (instance_queue:immich_vitals_queue_stalled:sum{@, queue=~"$queue"})'
    held = f"({paused} and {WAITING} > 0)"
    # Each set has the queue as its only label, so the first that has a queue is taken.
    return (
        f"6 * {held} or (5 + 0 * ({ready} > 0 and {workers} == 0)) or (4 + 0 * ({stalled} > 0))"
        f" or (3 + 0 * ({orphaned} > 0)) or 2 * ({paused}) or {BACKLOG} > bool 0"
    )


def age(metric: str) -> str:
    """How old the oldest is in each queue; 0 where nothing of the kind is there, which the counts know."""
    return f'time() - min by (queue) ({metric}{{@, queue=~"$queue"}})'


def board() -> Board:
    made = Board(
        "queues",
        "Are photos being worked on, and what do they still lack? First Redis, then its queues, then what they have"
        " made.",
        since="now-24h",
        filters={
            "queue": "immich_vitals_queue_jobs",
            "component": "immich_vitals_log_lines_total",
            "signature": "immich_vitals_log_matches_total",
        },
    )
    made.row("Redis").add(
        timeline(
            "Redis",
            [
                Query("min(immich_vitals_redis_up{@})", "answers"),
                Query("1 - max(immich_vitals_redis_loading{@})", "has loaded its data"),
                Query("min(immich_vitals_redis_writable{@})", "takes writes"),
                Query("min(immich_vitals_redis_last_save_ok{@})", "could save to disk"),
                Query("min(immich_vitals_redis_append_log_ok{@})", "could write its log"),
                Query("min(immich_vitals_redis_eviction_policy_safe{@})", "keeps all jobs"),
            ],
            WORKS,
            "Redis answers, takes writes, saves, and throws no job away. Red: uploads and every page about jobs hang,"
            " or jobs get lost; empty where it rejects our login. Alerts: ImmichRedisDown, ImmichRedisAuthFailing,"
            " ImmichRedisNotWritable, ImmichRedisEvicting.",
            w=12,
            h=7,
        ),
        rows(
            "Server",
            Query(
                """
                1000 * max(immich_vitals_redis_start_timestamp_seconds{@})
                * on () group_right () max by (server, version, role) (immich_vitals_redis_info{@})
                """,
                table=True,
            ),
            [
                Column("server", "Server"),
                Column("version", "Version"),
                Column("role", "Role"),
                Column("Value", "Started", unit="dateTimeFromNow"),
            ],
            "What Redis or Valkey it is, and when it started. Bad: a replica, which takes no writes, or a start that"
            " nobody remembers. Alert: ImmichRedisNotWritable.",
            w=8,
            h=7,
            empty="unknown",
        ),
        number(
            "Saved to disk",
            Query("1000 * max(immich_vitals_redis_last_save_timestamp_seconds{@})"),
            "dateTimeFromNow",
            "When Redis last saved its jobs to disk; an idle one has nothing to save. Bad: hours ago while jobs run; a"
            " crash loses what came since. Alert: ImmichRedisNotWritable, where saving fails.",
            h=7,
        ),
        lines(
            "Memory of Redis",
            [
                Query("max(immich_vitals_redis_memory_used_bytes{@})", "used"),
                Query("max(immich_vitals_redis_memory_max_bytes{@})", "maxmemory, where set"),
            ],
            "bytes",
            "Memory that Redis has taken, and its limit if it has one. Bad: used at the limit, then it refuses writes"
            " or throws jobs away. Alerts: ImmichRedisNotWritable, ImmichRedisEvicting.",
            w=8,
            h=6,
        ),
        lines(
            "Connections to Redis",
            Query("max(immich_vitals_redis_clients{@})", "connections"),
            "short",
            "Connections, ours included; Immich holds a few for each queue. Bad: a line that only climbs. Alert:"
            " ImmichRedisRejectingConnections.",
            w=8,
            h=6,
        ),
        number(
            "Connections allowed",
            Query("max(immich_vitals_redis_clients_max{@})"),
            "short",
            "The setting maxclients: further connections are refused. Bad: near what is connected. Alert:"
            " ImmichRedisRejectingConnections.",
            w=4,
            h=6,
        ),
        number(
            "Refused, thrown away",
            [
                Query(
                    "sum(increase(immich_vitals_redis_rejected_connections_total{@}[$__range]))",
                    "connections",
                ),
                Query("sum(increase(immich_vitals_redis_evicted_keys_total{@}[$__range]))", "keys"),
            ],
            "short",
            "Connections refused and keys thrown away for lack of memory, in the time shown. Bad: any; a key may have"
            " been a job. Alerts: ImmichRedisRejectingConnections, ImmichRedisEvicting.",
            given=((WELL, None), (SOON, 1)),
            names=True,
            decimals=0,
            h=6,
        ),
    )
    made.row("Queues").add(
        timeline(
            "What each queue does",
            Query(queue_states(), "{{queue}}"),
            QUEUE,
            "Red: jobs wait and nobody takes them. Orange: somebody paused it while jobs wait, or a worker died over"
            " its job. Alerts: ImmichQueuePaused, ImmichQueueNoWorkers, ImmichQueueStalled, ImmichQueueOrphanedJobs.",
            h=12,
        ),
        rows(
            "Queues now",
            [
                Query(WAITING, table=True),
                Query('sum by (queue) (immich_vitals_queue_jobs{@, queue=~"$queue", state="active"})', table=True),
                Query(age("immich_vitals_queue_oldest_waiting_timestamp_seconds"), table=True),
                Query(age("immich_vitals_queue_oldest_active_timestamp_seconds"), table=True),
                Query(DONE, table=True),
                # A recording: its pace is that of 15 minutes, whatever the zoom.
                Query(
                    'max by (queue) (instance_queue:immich_vitals_queue_drain:seconds{@, queue=~"$queue"}) > 0',
                    table=True,
                ),
                Query('sum by (queue) (immich_vitals_queue_workers{@, queue=~"$queue"})', table=True),
                Query('max by (queue) (immich_vitals_queue_paused{@, queue=~"$queue"})', table=True),
                Query('sum by (queue) (immich_vitals_queue_orphaned_jobs{@, queue=~"$queue"})', table=True),
                Query('sum by (queue) (immich_vitals_queue_jobs{@, queue=~"$queue", state="failed"})', table=True),
            ],
            [
                Column("queue", "Queue", width=190),
                Column("Value #A", "Waiting", unit="short"),
                Column("Value #B", "Running", unit="short"),
                Column("Value #C", "Waits for", unit="s"),
                Column("Value #D", "Runs for", unit="s"),
                Column("Value #E", "Done a minute", unit="short"),
                Column("Value #F", "Empty in", unit="s"),
                Column("Value #G", "Workers", unit="short"),
                Column("Value #H", "Paused", states=(State(0, "no", "transparent"), State(1, "paused", NOTE))),
                Column("Value #I", "Orphaned", unit="short", given=((PLAIN, None), (SOON, 1))),
                Column("Value #J", "Failed", unit="short"),
            ],
            "All about each queue, the longest on top; `Empty in` is at the pace of the last 15 minutes, and blank"
            " where nothing moves. Bad: many wait, nothing is done. Alerts: ImmichQueueStalled,"
            " ImmichQueueNotDraining, ImmichQueueNoWorkers.",
            sort="Value #A",
            descending=True,
            w=24,
            h=10,
            empty="unknown",
        ),
        lines(
            "Backlog",
            Query(BACKLOG, "{{queue}}"),
            "short",
            "All that Immich still means to do. A hill after an import is normal; what is above the line and longer"
            " than yesterday is not. Alert: ImmichQueueNotDraining.",
            given=((SOON, limit("queue_backlog_jobs")),),
            stacked=False,
        ),
        lines(
            "Jobs done in a minute",
            Query(DONE, "{{queue}}"),
            "cpm",
            "How fast each queue works; Immich counts most jobs that fail as done. Bad: 0 while there is a backlog."
            " Alerts: ImmichQueueStalled, ImmichJobsFailing.",
        ),
        lines(
            "Longest wait",
            Query(
                # Known to be none: 0.
                f"{age('immich_vitals_queue_oldest_waiting_timestamp_seconds')} or {WAITING} == 0",
                "{{queue}}",
            ),
            "s",
            "How long the oldest job of each queue has waited; 0 where none does. Bad: a straight climb, since nobody"
            " takes it. Alerts: ImmichQueueStalled, ImmichQueuePaused.",
            w=8,
        ),
        lines(
            "Longest run",
            Query(
                f"""
                {age("immich_vitals_queue_oldest_active_timestamp_seconds")}
                or sum by (queue) (immich_vitals_queue_jobs{{@, queue=~"$queue", state="active"}}) == 0
                """,
                "{{queue}}",
            ),
            "s",
            "How long the oldest running job of each queue has run; 0 where none does. A long video takes hours; a"
            " thumbnail that takes minutes hangs. Alerts: ImmichQueueOrphanedJobs, ImmichQueueStalled.",
            w=8,
        ),
        lines(
            "Time until empty",
            # A recording, as above; without rules only empty queues are known.
            Query(
                f"""
                max by (queue) (instance_queue:immich_vitals_queue_drain:seconds{{@, queue=~"$queue"}})
                or {BACKLOG} == 0
                """,
                "{{queue}}",
            ),
            "s",
            "How long the backlog lasts at the pace of the last 15 minutes, if nothing is added. Bad: it climbs; a gap"
            " is a backlog that stands still. Alert: ImmichQueueNotDraining.",
            w=8,
        ),
    )
    made.row("Jobs that fail").add(
        lines(
            "Failures in half an hour",
            # A recording: half an hour, whatever the zoom, as the limit has it.
            Query(
                """
                max by (signature) (
                  instance_signature:immich_vitals_log_matches_total:jobs30m{@, signature=~"$signature"}
                )
                """,
                "{{signature}}",
            ),
            "short",
            "Jobs that the server's log calls failed. Above the line and a good part of all: something breaks every"
            " photo. Alert: ImmichJobsFailing.",
            given=((SOON, limit("jobs_failed_count")),),
            unknown="unknown: no log is followed, or no rules",
        ),
        lines(
            "What the logs say of jobs",
            Query(
                happened(
                    'immich_vitals_log_matches_total{@, component=~"$component", signature=~"$signature",'
                    f' signature=~"{FAILURES}|file_missing|redis_error|ml_unreachable|ml_worker_crash|model_corrupt'
                    '|model_download_failed|out_of_memory"}',
                    "signature",
                    "component",
                ),
                "{{signature}} {{component}}",
            ),
            "short",
            "Troubles in the logs that make jobs fail, over time. A few are single bad files; a wall is a cause."
            " Alerts: ImmichJobsFailing, ImmichWorkLeftBehind, ImmichLogErrors.",
            bars=True,
            unknown="unknown: no log is followed",
        ),
    )
    made.row("What photos still lack").add(
        shared.assets_that_have_it(w=8, h=9),
        lines(
            "Assets that have it, over time",
            Query(COVERAGE, "{{stage}}"),
            "percentunit",
            "The same over time. A dip and back is an import; a cliff is lost files or a table that was emptied; a"
            " step that stays is work left behind. Alerts: ImmichThumbnailCoverageLow, ImmichThumbnailCoverageDropped,"
            " ImmichWorkLeftBehind.",
            given=((BAD, limit("coverage_ratio")),),
            least=None,
            w=16,
            h=9,
        ),
        rows(
            "Pending by stage",
            [
                Query(REQUIRED, table=True),
                Query(PENDING, table=True),
                Query(LEAST, table=True),
                Query(f"{PENDING} - {LEAST}", table=True),
                # A recording: only growth that passes both limits, without what never got a job-status row.
                Query("max by (stage) (instance_stage:immich_vitals_library_left_behind:growth7d{@})", table=True),
                Query(
                    f"time() - min by (stage) (immich_vitals_library_pending_oldest_timestamp_seconds{{@, {STAGES}}})",
                    table=True,
                ),
            ],
            [
                Column("stage", "Stage"),
                Column("Value #A", "Need it", unit="short"),
                Column("Value #B", "Pending", unit="short"),
                Column("Value #C", "Known for a week", unit="short"),
                Column("Value #D", "New", unit="short"),
                Column(
                    "Value #E",
                    "Beyond the limits",
                    unit="short",
                    given=((PLAIN, None), (SOON, limit("left_behind_assets"))),
                ),
                Column("Value #F", "Oldest came in ago", unit="s"),
            ],
            "What has been pending for all of a week is known to be bad, such as files that no program can read, and"
            " wakes nobody. Bad: something beyond the limits while the queues are empty. Alerts: ImmichWorkLeftBehind,"
            " ImmichMetadataPending.",
            sort="Value #D",
            descending=True,
            w=16,
            empty="unknown",
        ),
        shared.never_processed(h=8),
        number(
            "Thumbnails lost",
            # Recordings: what passes both limits, else none of what could have been lost.
            Query(
                """
                max(instance:immich_vitals_library_thumbnails_lost:max{@})
                or 0 * max(instance_stage:immich_vitals_library_pending:lost7d{@})
                """,
            ),
            "short",
            "Assets that had thumbnails this week and have none now, where they are more than the limits allow. Bad:"
            " any. Alert: ImmichThumbnailCoverageDropped.",
            given=((WELL, None), (BAD, 1)),
            decimals=0,
            h=8,
        ),
        lines(
            "Pending",
            Query(PENDING, "{{stage}}"),
            "short",
            "Assets whose result is not recorded. A hill after an import is normal; a plain is known to be bad or left"
            " behind. Alerts: ImmichWorkLeftBehind, ImmichMetadataPending, ImmichThumbnailCoverageDropped.",
            w=8,
        ),
        lines(
            "More pending than in a week",
            # A recording: the least of a week at each point in time is too much to ask of raw samples.
            Query(
                f"max by (stage) (instance_stage:immich_vitals_library_pending:growth7d{{@, {STAGES}}})", "{{stage}}"
            ),
            "short",
            "What is pending beyond the best moment of the last seven days. A plain above the line while the queues"
            " are empty is work left behind. Alerts: ImmichWorkLeftBehind, ImmichMetadataPending.",
            given=((SOON, limit("left_behind_assets")),),
            w=8,
            unknown="unknown without rules",
        ),
        lines(
            "Age of the oldest pending",
            Query(
                # Known to be none: 0.
                f"""
                time() - min by (stage) (immich_vitals_library_pending_oldest_timestamp_seconds{{@, {STAGES}}})
                or {PENDING} == 0
                """,
                "{{stage}}",
            ),
            "s",
            "How long ago the oldest asset that is pending came in; 0 where none is. A straight climb over weeks is"
            " one bad file; with many pending it is forgotten work. Alert: ImmichWorkLeftBehind.",
            w=8,
        ),
    )
    made.row("The library").add(
        timeline(
            "The database of the photos",
            Query(
                # Recordings: they compare with the week before. A rollback is told for a day, as its alert does.
                """
                max(
                  3 * (instance:immich_vitals_library_empty:bool{@} == 1)
                  or 2 * (instance:immich_vitals_library_replaced:bool{@} == 1)
                  or max_over_time(instance:immich_vitals_library_rolled_back:seconds{@}[1d]) > bool 0
                  or 0 * instance:immich_vitals_library_assets:sum{@}
                )
                """,
                "database",
            ),
            DATABASE,
            "Whether this is the database of yesterday. Red: stop, upload nothing, and look which disk or folder"
            " Postgres runs on. Alerts: ImmichDatabaseEmpty, ImmichDatabaseReplaced, ImmichDatabaseRolledBack.",
            w=12,
            h=4,
        ),
        number(
            "Gone within a day",
            # A recording: the most of a day is that of a sum.
            Query(
                f"""
                max(
                  (1 - {PRESENT} / (max_over_time({PRESENT}[1d]) > 0))
                  * (max_over_time({PRESENT}[1d]) - {PRESENT} > bool {limit("mass_deletion_assets"):.0f})
                )
                """,
            ),
            "percentunit",
            "Part of the assets outside the trash that is no longer there, against the most of the last day; 0 while"
            " it is only a handful. Red: a mass deletion; the trash keeps them for some days. Alert:"
            " ImmichMassDeletion.",
            given=((WELL, None), (BAD, limit("mass_deletion_ratio"))),
            decimals=0,
        ),
        number(
            "Newest asset",
            Query("1000 * max(immich_vitals_library_newest_asset_timestamp_seconds{@})"),
            "dateTimeFromNow",
            "When the newest asset came in. Bad: longer ago than the last upload. Alert: ImmichDatabaseRolledBack.",
        ),
        number(
            "Users",
            Query("max(immich_vitals_library_users{@})"),
            "short",
            "Users that are not deleted. Bad: 0; the database is an empty one. Alert: ImmichDatabaseEmpty.",
        ),
        lines(
            "Assets",
            Query("sum by (type, state) (immich_vitals_library_assets{@})", "{{type}} {{state}}"),
            "short",
            "Photos and videos by the state they are in. A cliff is a mass deletion, or another database. Alerts:"
            " ImmichMassDeletion, ImmichDatabaseRolledBack, ImmichExternalLibraryOffline.",
            stacked=True,
            w=12,
            h=9,
        ),
        rows(
            "Assets now",
            Query("sum by (type, state) (immich_vitals_library_assets{@})", table=True),
            [
                Column("type", "Type", width=90),
                Column("state", "State"),
                Column("Value", "Assets", unit="short", width=110),
            ],
            "Each asset is in one state: offline, trashed, hidden (the moving part of a live photo), locked, archived,"
            " or live. Bad: many trashed or offline overnight. Alerts: ImmichMassDeletion,"
            " ImmichExternalLibraryOffline.",
            sort="Value",
            descending=True,
            w=6,
            h=9,
            empty="unknown",
        ),
        number(
            "Offline",
            Query("sum(immich_vitals_library_external_offline_assets{@})"),
            "short",
            "Files of external libraries that the last scan did not find. A number that stays is old news. Alert:"
            " ImmichExternalLibraryOffline, which reads what is new.",
            w=3,
            h=9,
        ),
        number(
            "Newly offline",
            # From raw counts, so that it is there without rules.
            Query(
                """
                sum(
                  immich_vitals_library_external_offline_assets{@}
                  - min_over_time(immich_vitals_library_external_offline_assets{@}[7d])
                )
                """,
            ),
            "short",
            "How many more files of external libraries are offline than at the best moment of the week. Bad: many;"
            " their disk is away. Alert: ImmichExternalLibraryOffline.",
            given=((WELL, None), (SOON, limit("external_offline_assets"))),
            w=3,
            h=9,
        ),
        number(
            "Videos without a copy",
            Query('sum(immich_vitals_library_pending{@, stage="encoded_video"})'),
            "short",
            "Videos that have no encoded copy. Most need none, since browsers play them as they are. No alert speaks"
            " of it.",
            w=8,
        ),
        number(
            "Tables are understood",
            Query("min(immich_vitals_library_schema_supported{@})"),
            "none",
            "The exporter knows the tables of this Immich. No: some of the counts above are missing, and their alerts"
            " silent. Alert: ImmichSchemaUnsupported.",
            states=YES_NO,
            w=8,
        ),
        number(
            "Migrations applied",
            Query("max(immich_vitals_library_migrations_applied{@})"),
            "short",
            "Migrations that Immich has applied to its database. Bad: fewer than before; the database is an older one."
            " Alert: ImmichDatabaseRolledBack.",
            w=8,
        ),
    )
    return made

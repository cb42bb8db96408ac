"""PostgreSQL: does it answer, does it fit Immich, is its data whole, and does anything hold it up?"""

from grafana.source.kit import (
    BAD,
    CLEAR,
    NOTE,
    PLAIN,
    SOON,
    WELL,
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

WRAPAROUND_CRITICAL = 0.8
"""ImmichPostgresWraparound: critical from here, which is no limit that can be set."""
LATCHED_SECONDS = 7 * 86400
"""ImmichPostgresCorruption and ImmichPostgresChecksumFailures speak of damage that was met within so long."""
ONE_EVENT = 0.5
"""What `increase` makes of one event may be somewhat less than 1."""

WORKS = (State(1, "yes", WELL), State(0, "no", BAD))
SAFE = (State(0, "safe", WELL), State(1, "risks data", SOON), State(2, "safe on ZFS", WELL))
SORTS = (State(0, "as it did", WELL), State(1, "changed", SOON))
EXTENSION = (
    State(0, "fits", WELL),
    State(1, "its files are gone", BAD),
    State(2, "not installed", "transparent"),
    State(3, "not updated", SOON),
    State(4, "not updated", NOTE),
)
CHECKSUMS = (State(1, "on", WELL), State(0, "off", NOTE))

ANSWERS = 'immich_vitals_collector_success{@, collector="postgres"} == 1'
CHECKSUMS_OFF = Word("checksums are off", "immich_vitals_postgres_checksums_enabled{@} == 0", NOTE)
CHECKSUMS_ON = Word("none", "immich_vitals_postgres_checksums_enabled{@} == 1", WELL)
NOT_KNOWN = Word("not known", "immich_vitals_build_info{@}")
MET = (CHECKSUMS_OFF, CHECKSUMS_ON, NOT_KNOWN)
# Cut files are counted with the patrol or without it. `rate` only asks whether there is a counter.
PATROL_OFF = Word(
    "switched off",
    "immich_vitals_postgres_truncated_relations{@} unless on (instance)"
    " rate(immich_vitals_postgres_patrol_pages_total{@}[1h])",
)
PATROL_BEGINS = Word("no pass yet", "immich_vitals_postgres_truncated_relations{@}", NOTE)
AMCHECK_OFF = Word(
    "switched off",
    "immich_vitals_postgres_truncated_relations{@} unless on (instance)"
    " rate(immich_vitals_postgres_amcheck_indexes_total{@}[1h])",
)
AMCHECK_BEGINS = Word("no pass yet", "immich_vitals_postgres_truncated_relations{@}", NOTE)
LOG_FOLLOWED = Word("none", 'immich_vitals_log_stream_up{@, component="database"} == 1', WELL)
LOG_NOT_FOLLOWED = Word("log is not followed", "immich_vitals_build_info{@}")
LOG = (LOG_FOLLOWED, LOG_NOT_FOLLOWED)
NO_COLLATION = (Word("none depends on one", ANSWERS, WELL), NOT_KNOWN)

# What the server's log says of Postgres; of Postgres' own log everything counts.
OF_POSTGRES = "postgres_.+|database_.+|collation_mismatch|extension_problem|migration_failed|schema_missing|shm_full"
LOGGED = 'immich_vitals_log_matches_total{@, component="database"}'
# The server quotes Postgres, so its log counts only where that of Postgres is not followed.
DAMAGE_LOGGED = """
max(immich_vitals_log_last_match_timestamp_seconds{@, signature="postgres_corruption", component="database"})
or (
  max(immich_vitals_log_last_match_timestamp_seconds{@, signature="postgres_corruption", component="server"})
  unless on () immich_vitals_log_stream_up{@, component="database"} == 1
)
"""
BOTH = 'immich_vitals_postgres_extension_info{@, extension=~"$extension", installed!="", available!=""}'
VECTORS = 'immich_vitals_postgres_extension_info{@, extension=~"vchord|vectors", installed!=""}'


def same(metric: str) -> str:
    """Those of two versions that are equal: `wanted` is there to compare two labels."""
    return " and ".join(f'label_join({metric}, "wanted", "", "{version}")' for version in ("installed", "available"))


def extensions() -> str:
    """0 for one of the version that its files are, and for the others what is wrong, as the rules have it."""
    return f"""
    max by (extension, installed, available) (
      0 * ({same(BOTH)})
      or ignoring (wanted) 2 * immich_vitals_postgres_extension_info{{@, extension=~"$extension", installed=""}}
      or ignoring (wanted) immich_vitals_postgres_extension_info{{@, extension=~"$extension", available=""}}
      or ignoring (wanted)
      3 * immich_vitals_postgres_extension_info{{@, extension=~"$extension", extension=~"vchord|vectors"}}
      or ignoring (wanted) (
        3 * immich_vitals_postgres_extension_info{{@, extension=~"$extension", extension="vector"}}
        unless on (instance) {VECTORS}
      )
      or ignoring (wanted) 4 * {BOTH}
    )
    """


def board() -> Board:
    made = Board(
        "postgres",
        "Does Postgres answer, does it fit Immich, is its data whole, and does anything hold it up? The first red row"
        " from the top is where to look.",
        filters={
            "database": "immich_vitals_postgres_checksum_failures_total",
            "setting": "immich_vitals_postgres_unsafe_setting",
            "extension": "immich_vitals_postgres_extension_info",
        },
    )
    _answers(made)
    _fits(made)
    _whole(made)
    _held_up(made)
    _size(made)
    return made


def _answers(made: Board) -> None:
    made.row("1. Does it answer").add(
        timeline(
            "Postgres",
            [
                Query("min(immich_vitals_postgres_up{@})", "answers"),
                Query("min(immich_vitals_postgres_writable{@})", "takes writes"),
            ],
            WORKS,
            "Postgres takes connections, and writes. Red: nothing of Immich works, or every upload fails. Nothing"
            " drawn: it turns our own login away, so it is not known. Alerts: ImmichPostgresDown,"
            " ImmichPostgresReadOnly.",
            w=12,
            h=6,
        ),
        rows(
            "Server",
            Query(
                """
                max by (version, system_identifier) (immich_vitals_postgres_info{@})
                * on () group_left () (1000 * max(immich_vitals_postgres_start_timestamp_seconds{@}))
                """,
                table=True,
            ),
            [
                Column("version", "Version", width=90),
                Column("system_identifier", "Data directory"),
                Column("Value", "Started", unit="dateTimeFromNow", width=130),
            ],
            "Its version, the number that its data directory got when it was made, and its start. Bad: another number"
            " than last week, so Immich runs on other data, or a version that its files are not of. Alert:"
            " ImmichPostgresVersionMismatch.",
            w=8,
            h=6,
            empty="unknown",
        ),
        number(
            "Up for",
            [
                Query("time() - max(immich_vitals_postgres_start_timestamp_seconds{@})", "Postgres"),
                Query(
                    "time() - max(immich_vitals_postgres_checkpointer_start_timestamp_seconds{@})",
                    "checkpointer",
                ),
            ],
            "s",
            "How long ago Postgres and its checkpointer were started. Bad: the checkpointer is much younger, for then"
            " a process of Postgres crashed and it restarted the others itself. Alert: ImmichPostgresCrashed.",
            names=True,
            w=4,
            h=6,
        ),
        lines(
            "Troubles in its log",
            [
                Query(f"sum(increase({LOGGED}[$__rate_interval]))", "all"),
                # Only those that there were, so that those that there were not need no line and no name.
                Query(
                    f"""
                    sum by (signature) (increase({LOGGED}[$__rate_interval]))
                    and on (signature) sum by (signature) (increase({LOGGED}[$__range] @ end())) > 0
                    """,
                    "{{signature}}",
                ),
            ],
            "short",
            "Events in the log of Postgres that tell of a known trouble. Bad: a wall that begins at one moment, which"
            " is the hour to look at. Alerts: those of the table beside it.",
            bars=True,
            w=12,
        ),
        rows(
            "Known troubles",
            Query(
                or_words(
                    f"""
                    (
                      sum by (component, signature) (increase({LOGGED}[$__range]))
                      or
                      sum by (component, signature) (
                        increase(immich_vitals_log_matches_total{{@,
                          component=~"server|microservices", signature=~"{OF_POSTGRES}"
                        }}[$__range])
                      )
                    ) > {ONE_EVENT}
                    """,
                    LOG,
                    "signature",
                ),
                table=True,
            ),
            [
                Column("signature", "Trouble", texts=spoken(LOG)),
                Column("component", "In the log of", width=160),
                Column("Value", "Events", unit="short", states=blank(LOG), width=90),
            ],
            "What its log, and the server's about it, told of in the time shown. Bad: postgres_corruption at all, and"
            " what comes again and again. Alerts: ImmichPostgresCorruption, ImmichPostgresWrongOwnership,"
            " ImmichPostgresVersionMismatch, ImmichPostgresAuthFailing, ImmichSharedMemoryFull,"
            " ImmichVectorExtensionProblem.",
            sort="Value",
            descending=True,
            w=12,
        ),
    )


def _fits(made: Board) -> None:
    made.row("2. Does it fit Immich").add(
        rows(
            "Extensions",
            Query(extensions(), table=True),
            [
                Column("extension", "Extension"),
                Column("Value", "State", states=EXTENSION, width=150),
                Column("installed", "Installed", width=110),
                Column("available", "Files are of", width=110),
            ],
            "What Immich has installed in its database, and what the image of Postgres brings. Red: the image has no"
            " files of it, so search and faces fail and the server may not start; orange: Immich did not update it."
            " Alert: ImmichVectorExtensionProblem, which also speaks when there is none of vchord, vectors and vector.",
            sort="extension",
            w=12,
        ),
        rows(
            "Settings",
            Query(
                """
                max by (setting) (
                  2 * (
                    immich_vitals_postgres_unsafe_setting{@, setting=~"$setting", setting="full_page_writes"} == 1
                    and on (instance) immich_vitals_filesystem_info{@, role="database", fstype="zfs"}
                  )
                  or immich_vitals_postgres_unsafe_setting{@, setting=~"$setting"}
                )
                """,
                table=True,
            ),
            [
                Column("setting", "Setting"),
                Column("Value", "Its value", states=SAFE, width=130),
            ],
            "Settings that decide whether data survives. Orange: it stands at the value that risks data, so the next"
            " power failure or damaged page costs some. Alert: ImmichPostgresUnsafeSetting.",
            sort="setting",
            w=6,
            empty="unknown",
        ),
        rows(
            "Collations",
            Query(
                or_words(
                    'max by (database) (immich_vitals_postgres_collation_mismatch{@, database=~"$database"})',
                    NO_COLLATION,
                    "database",
                ),
                table=True,
            ),
            [
                Column("database", "Database", texts=spoken(NO_COLLATION)),
                Column("Value", "Texts sort", states=(*SORTS, *blank(NO_COLLATION)), width=110),
            ],
            "Whether texts sort as when each database was made. Orange: the image brought another version of its"
            " collation, so indexes may miss what is there; REINDEX as the runbook says. Alert:"
            " ImmichPostgresCollationMismatch.",
            sort="database",
            w=6,
        ),
        number(
            "Unused indexes",
            Query("max(immich_vitals_postgres_invalid_indexes{@})"),
            "short",
            "Indexes that failed to build. Orange: they cost room and time at each write, and searches go without"
            " them. Alert: ImmichPostgresInvalidIndex.",
            given=((WELL, None), (SOON, 1)),
            w=12,
        ),
        number(
            "Transaction numbers in use",
            Query("max(immich_vitals_postgres_xid_age_ratio{@})"),
            "percentunit",
            "Part of the transaction numbers that vacuum could not free; at 100 % Postgres takes no writes. Orange:"
            " vacuum has failed for long; red: it will not do it alone. Alert: ImmichPostgresWraparound.",
            given=((WELL, None), (SOON, limit("postgres_wraparound_ratio")), (BAD, WRAPAROUND_CRITICAL)),
            decimals=1,
            w=12,
        ),
    )


def _whole(made: Board) -> None:
    made.row("3. Is its data whole").add(
        number(
            "Checksums",
            Query("max(immich_vitals_postgres_checksums_enabled{@})"),
            "none",
            "Whether Postgres notices a damaged page. Blue: off, as Immich before 1.104 made its database, so nothing"
            " beside says that the data is whole. Alert: ImmichPostgresChecksumsDisabled.",
            states=CHECKSUMS,
        ),
        number(
            "Damaged pages read",
            Query('sum(immich_vitals_postgres_checksum_failures_total{@, database=~"$database"})'),
            "short",
            "Damaged pages that Postgres met since its last crash or reset of statistics. Red: any. 0 is no proof,"
            " since pages that nobody reads are not counted. Alert: ImmichPostgresChecksumFailures.",
            given=((WELL, None), (BAD, 1)),
            words=(CHECKSUMS_OFF,),
        ),
        number(
            "Files cut short",
            Query("max(immich_vitals_postgres_truncated_relations{@})"),
            "short",
            "Tables and indexes whose file is shorter than Postgres recorded it, which it reads without an error. Red:"
            " any; what was there is missing. Alert: ImmichPostgresCorruption.",
            given=((WELL, None), (BAD, 1)),
        ),
        number(
            "Damage in the log",
            Query(f"time() - ({DAMAGE_LOGGED})"),
            "s",
            "How long ago the log last spoke of damaged data. Red: within a week; restart nothing and keep every"
            " backup. Alert: ImmichPostgresCorruption.",
            given=((BAD, None), (WELL, LATCHED_SECONDS)),
            words=LOG,
        ),
        rows(
            "Databases with damage",
            Query(
                or_words(
                    """
                    1000 * max by (database) (
                      immich_vitals_postgres_checksum_last_failure_timestamp_seconds{@, database=~"$database"}
                    )
                    """,
                    MET,
                    "database",
                ),
                table=True,
            ),
            [
                Column("database", "Database", texts=spoken(MET)),
                Column("Value", "Last damaged page", unit="dateTimeFromNow", states=blank(MET), width=160),
            ],
            "When Postgres last met a damaged page, by database. Bad: any line within a week. Alert:"
            " ImmichPostgresChecksumFailures.",
            w=8,
            h=4,
        ),
        number(
            "Damaged pages found",
            Query("max(immich_vitals_postgres_patrol_damaged_pages{@})"),
            "short",
            "Pages that the page patrol could not read and has not met whole since; IMMICH_VITALS_PAGE_PATROL switches"
            " it on. Red: any. Alert: ImmichPostgresCorruption.",
            given=((WELL, None), (BAD, 1)),
            words=(PATROL_OFF, PATROL_BEGINS),
        ),
        number(
            "Pages read per second",
            Query("sum(rate(immich_vitals_postgres_patrol_pages_total{@}[$__rate_interval]))"),
            "short",
            "The pace of the page patrol, which IMMICH_VITALS_PAGE_PATROL_RATE sets; 0 between two passes. Bad: 0 for"
            " weeks. No alert speaks of it.",
            words=(PATROL_OFF,),
            decimals=0,
        ),
        number(
            "Patrol's pass",
            Query("max(immich_vitals_postgres_patrol_progress_ratio{@})"),
            "percentunit",
            "How much of its present pass the page patrol has done. Bad: the same for days. No alert speaks of it.",
            words=(PATROL_OFF, Word("between two", "immich_vitals_postgres_truncated_relations{@}", PLAIN)),
            decimals=0,
        ),
        number(
            "Last whole pass",
            Query("time() - max(immich_vitals_postgres_patrol_completed_timestamp_seconds{@})"),
            "s",
            "How long ago the page patrol last read every table. Bad: much longer than"
            " IMMICH_VITALS_PAGE_PATROL_INTERVAL. No alert speaks of it.",
            words=(PATROL_OFF, PATROL_BEGINS),
        ),
        number(
            "Last clean pass",
            Query(
                'time() - max(immich_vitals_postgres_patrol_clean_timestamp_seconds{@, database=~"$database"})',
            ),
            "s",
            "How long ago a pass began that read every page, those of indexes too, and left none damaged: what was met"
            " before is mended. Alerts: ImmichPostgresCorruption and ImmichPostgresChecksumFailures end with it.",
            words=(PATROL_OFF, PATROL_BEGINS),
        ),
        number(
            "Damaged indexes",
            Query("max(immich_vitals_postgres_amcheck_damaged_indexes{@})"),
            "short",
            "Indexes that amcheck found out of order, until they are built anew; IMMICH_VITALS_AMCHECK switches it on."
            " Red: any. Alert: ImmichPostgresCorruption.",
            given=((WELL, None), (BAD, 1)),
            words=(AMCHECK_OFF, AMCHECK_BEGINS),
        ),
    )


def _held_up(made: Board) -> None:
    made.row("4. What holds it up").add(
        lines(
            "Connections by state",
            Query(
                """
                sum by (state) (immich_vitals_postgres_connections{@, state=~"active|idle|idle_in_transaction"})
                or sum by (state) (immich_vitals_postgres_connections{@}) > 0
                """,
                "{{state}}",
            ),
            "short",
            "What the connections of clients do. Bad: idle_in_transaction that stays, for such a one may hold locks;"
            " unknown means that our role may not see it. Alerts: ImmichPostgresConnectionsNearLimit,"
            " ImmichPostgresLongTransaction.",
            stacked=True,
        ),
        lines(
            "Connections in use",
            Query(
                "max(sum without (state) (immich_vitals_postgres_connections{@}) /"
                " immich_vitals_postgres_connections_max{@})"
            ),
            "percentunit",
            "Part of the connections that Postgres allows. Bad: above the line; at 100 % Immich's own are refused."
            " Alert: ImmichPostgresConnectionsNearLimit.",
            given=((CLEAR, None), (SOON, limit("postgres_connections_ratio"))),
            most=1.0,
        ),
        lines(
            "Oldest transaction",
            # None open is 0; not so where some sessions do not tell their state.
            Query(
                """
                max(time() - immich_vitals_postgres_oldest_transaction_timestamp_seconds{@})
                or on ()
                0 * (max(immich_vitals_postgres_connections_max{@})
                unless on () sum(immich_vitals_postgres_connections{@, state="unknown"}) > 0)
                """,
                "open for",
            ),
            "s",
            "How long the oldest transaction has been open; 0 while none is. Bad: above the line, since it may hold"
            " locks and Postgres cannot clean up after it. Alert: ImmichPostgresLongTransaction.",
            given=((CLEAR, None), (SOON, limit("postgres_transaction_seconds"))),
            w=8,
        ),
        lines(
            "Sessions behind a lock",
            Query("max(immich_vitals_postgres_blocked_sessions{@})", "wait"),
            "short",
            "Sessions that wait for a lock. Moments are normal; a plain means that somebody does not let go, and what"
            " waits hangs in Immich. Alert: ImmichPostgresBlocked.",
            given=((CLEAR, None), (SOON, 1)),
            w=8,
        ),
        lines(
            "Deadlocks",
            Query("sum(increase(immich_vitals_postgres_deadlocks_total{@}[$__rate_interval]))", "resolved"),
            "short",
            "Times that two sessions waited for each other, and Postgres ended one. A few do no harm; bad: many in a"
            " row, for then jobs fail. No alert speaks of it.",
            bars=True,
            w=8,
        ),
    )


def _size(made: Board) -> None:
    made.row("5. Size").add(
        lines(
            "Size of the database",
            Query("max(immich_vitals_postgres_database_size_bytes{@})", "database"),
            "bytes",
            "Room that Immich's database takes on its disk. Bad: a step up that no import explains, or a step down"
            " that nobody made. No alert speaks of it; ImmichDiskFull does of its disk.",
            w=24,
        ),
    )

"""Services and host: what runs, what it says, and what it stands on."""

from grafana.source import shared
from grafana.source.kit import (
    BAD,
    CLEAR,
    NOTE,
    PLAIN,
    SOON,
    WELL,
    YES_NO,
    Board,
    Column,
    Query,
    State,
    Word,
    happened,
    limit,
    lines,
    number,
    or_none,
    rows,
    timeline,
)

# Of several that hold for a container the largest is shown: health counts only while it runs.
CONTAINER = (
    State(1, "running", WELL),
    State(2, "starting", NOTE),
    State(3, "unhealthy", BAD),
    State(4, "paused", SOON),
    State(5, "restarting", BAD),
    State(6, "being removed", NOTE),
    State(7, "never started", BAD),
    State(8, "ended", BAD),
    State(9, "dead", BAD),
    State(10, "no container", BAD),
)
STATES = {"running": 1, "paused": 4, "restarting": 5, "removing": 6, "created": 7, "exited": 8, "dead": 9}
HEALTHS = {"starting": 2, "unhealthy": 3}
EXITS = {
    "none": ("none", WELL),
    "0": ("0: done", PLAIN),
    "1": ("1: an error, see the log", SOON),
    "132": ("132: lacks a CPU instruction", BAD),
    "134": ("134: gave up (abort)", BAD),
    "137": ("137: killed (memory, or docker kill)", SOON),
    "139": ("139: crashed (segmentation fault)", BAD),
    "143": ("143: was asked to end", PLAIN),
}
# ImmichRestartLoop, its slow form: more than three starts in an hour.
STARTS_IN_AN_HOUR = 3
OURS = '@, component=~"$component", container=~"$container"'
MATCHES = 'immich_vitals_log_matches_total{@, component=~"$component", signature=~"$signature"}'


def container_states() -> str:
    """One number per container, as `CONTAINER` has them."""
    states = [
        f'{value} * (immich_vitals_container_state{{{OURS}, state="{name}"}} == 1)' for name, value in STATES.items()
    ]
    healths = [
        f'{value} * (immich_vitals_container_health{{{OURS}, health="{name}"}} == 1)' for name, value in HEALTHS.items()
    ]
    return f"max by (component, container) ({' or '.join(states + healths)})"


def waiting(severity: str) -> str:
    """The part of the time in which some tasks, or all of them (full), waited, by what they waited for."""
    counter = f'immich_vitals_host_pressure_waiting_seconds_total{{@, severity="{severity}"}}'
    return f"max by (resource) (rate({counter}[$__rate_interval]))"


def board() -> Board:
    made = Board(
        "services",
        "What of Immich runs, what its logs say, and what its machine has left. The first red panel from the top is"
        " where to look.",
        filters={
            "component": "immich_vitals_container_found",
            "container": "immich_vitals_container_state",
            "signature": "immich_vitals_log_matches_total",
        },
    )
    made.row("Containers").add(
        timeline(
            "State and health",
            [
                Query(container_states(), "{{component}} {{container}}"),
                # A database or a Redis that answers without a container runs elsewhere, which is well.
                Query(
                    """
                    10 + max by (component) (
                      immich_vitals_container_found{@, component=~"$component"} == 0
                      unless on (component) (
                        label_replace(immich_vitals_postgres_up{@} == 1, "component", "database", "", "")
                        or
                        label_replace(immich_vitals_redis_up{@} == 1, "component", "redis", "", "")
                      )
                    )
                    """,
                    "{{component}}",
                ),
            ],
            CONTAINER,
            "What each container of Immich does. Red: it does not run, says itself that it is unwell, or is not there"
            " at all; orange: somebody froze it. Alerts: ImmichContainerDown, ImmichContainerStopped,"
            " ImmichContainerPaused, ImmichContainerUnhealthy, ImmichServiceMissing, ImmichRestartLoop.",
            h=8,
        ),
        rows(
            "Images",
            Query(
                f"""
                1000 * max by (component, container) (immich_vitals_container_start_timestamp_seconds{{{OURS}}})
                * on (component, container) group_left (image, version)
                max by (component, container, image, version) (immich_vitals_container_info{{{OURS}}})
                """,
                table=True,
            ),
            [
                Column("component", "Part", width=150),
                Column("container", "Container"),
                Column("image", "Image"),
                Column("version", "Version", width=130),
                Column("Value", "Started", unit="dateTimeFromNow", width=130),
            ],
            "What each container was made from, and when it was last started. Bad: a start that nobody remembers."
            " Alerts: ImmichRestartLoop, ImmichVersionSkew.",
            sort="component",
            w=16,
            h=7,
            empty="unknown",
        ),
        number(
            "Photos are mounted",
            Query(f"min(immich_vitals_container_media_mounted{{{OURS}}})"),
            "none",
            "The photos lie on a folder or volume of the host. No: they lie in the container and are lost with it; do"
            " not re-create it. Alert: ImmichMediaNotMounted.",
            states=YES_NO,
            h=7,
        ),
        number(
            "Docker can start them",
            Query(f"1 - max(immich_vitals_container_start_failed{{{OURS}}})"),
            "none",
            "No: the engine could not start a container at all, because a path, port or device of it is missing or"
            " taken. Alert: ImmichContainerDown.",
            states=YES_NO,
            h=7,
        ),
    )
    made.row("Ends and restarts").add(
        lines(
            "Ends by exit code",
            Query(happened('immich_vitals_container_exits_total{@, component=~"$component"}', "code"), "{{code}}"),
            "short",
            "When containers ended, and with which code. A few of 0 and 143 are an upgrade; 1 again and again is a"
            " crash, 132 a CPU that lacks something, 137 often memory. Alerts: ImmichIllegalInstruction,"
            " ImmichRestartLoop, ImmichContainerOOMKilled.",
            bars=True,
        ),
        rows(
            "How they ended",
            Query(
                or_none(
                    """
                    sum by (component, code) (
                      increase(immich_vitals_container_exits_total{@, component=~"$component"}[$__range])
                    ) > 0.5
                    """,
                    "code",
                ),
                table=True,
            ),
            [
                Column("code", "Exit code", texts=EXITS),
                Column("component", "Part", width=160),
                Column("Value", "Ends", unit="short", width=90),
            ],
            "Ends of containers in the time shown, most often first. Bad: any that nobody asked for. Alerts:"
            " ImmichIllegalInstruction, ImmichContainerOOMKilled, ImmichContainerDown.",
            sort="Value",
            descending=True,
        ),
        lines(
            "Starts in the last hour",
            Query(
                f"max by (component) (changes(immich_vitals_container_start_timestamp_seconds{{{OURS}}}[1h]))",
                "{{component}}",
            ),
            "short",
            "How often each container was started anew, by whomever. Above the line, and still going on: it crashes, or"
            " a helper like autoheal restarts it again and again. Alert: ImmichRestartLoop.",
            given=((BAD, STARTS_IN_AN_HOUR),),
        ),
        lines(
            "Restarts by Docker",
            Query(
                f"sum by (component) (increase(immich_vitals_container_restarts_total{{{OURS}}}[$__rate_interval]))",
                "{{component}}",
            ),
            "short",
            "How often the engine started a container again because it had ended. Bad: a wall; three in ten minutes"
            " are a loop. Alert: ImmichRestartLoop.",
            bars=True,
        ),
    )
    made.row("What the logs say").add(
        lines(
            "Known troubles",
            Query(happened(MATCHES, "signature"), "{{signature}}"),
            "short",
            "Events in the logs that tell of a known trouble, by its signature. A few are everyday; a wall that begins"
            " at one moment is the hour to look at. Alerts: ImmichLogErrors, and those that the trouble belongs to.",
            bars=True,
            unknown="unknown: no log is followed",
        ),
        rows(
            "Which troubles",
            [
                Query(
                    or_none(f"sum by (component, signature) (increase({MATCHES}[$__range])) > 0.5", "signature"),
                    table=True,
                ),
                Query(
                    f"""
                    1000 * max by (component, signature) (immich_vitals_log_last_match_timestamp_seconds{{@,
                      component=~"$component", signature=~"$signature"
                    }})
                    and sum by (component, signature) (increase({MATCHES}[$__range])) > 0.5
                    """,
                    table=True,
                ),
            ],
            [
                Column("signature", "Trouble", texts={"none": ("none", WELL)}),
                Column("component", "Part", width=150),
                Column("Value #A", "Events", unit="short", width=80),
                Column("Value #B", "Last", unit="dateTimeFromNow", width=130),
            ],
            "What the logs told of in the time shown, most often first, and when last. `immich-vitals log-match` says"
            " of a line what it counts as. Alerts: ImmichLogErrors, ImmichMachineLearningCrashing,"
            " ImmichModelCacheBroken, ImmichIllegalInstruction.",
            sort="Value #A",
            descending=True,
        ),
        lines(
            "Lines of log",
            Query(
                """
                60 * sum by (component) (
                  rate(immich_vitals_log_lines_total{@, component=~"$component"}[$__rate_interval])
                )
                """,
                "{{component}}",
            ),
            "cpm",
            "How much each part writes. Bad: many times the usual, since something is tried again and again. No alert"
            " speaks of it.",
            h=7,
            unknown="unknown: no log is followed",
        ),
        shared.logs_followed(w=12, h=7),
    )
    made.row("Memory and CPU of the containers").add(
        number(
            "Memory limit in use",
            Query(
                f"""
                max by (container) (immich_vitals_container_memory_working_set_bytes{{{OURS}}})
                / max by (container) (immich_vitals_container_memory_limit_bytes{{{OURS}}})
                """,
                "{{container}}",
            ),
            "percentunit",
            "How much of its memory limit each container that has one uses. Orange for long: soon the kernel kills a"
            " process in it. Alert: ImmichContainerMemoryNearLimit.",
            given=((WELL, None), (SOON, limit("container_memory_ratio"))),
            names=True,
            decimals=0,
            words=(Word("no limit is set", "immich_vitals_container_memory_working_set_bytes{@}"),),
            w=8,
            h=8,
        ),
        lines(
            "Memory of the containers",
            Query(
                f"max by (container) (immich_vitals_container_memory_working_set_bytes{{{OURS}}})",
                "{{container}}",
            ),
            "bytes",
            "Memory in use, without page cache that can be taken back. Bad: a line that only climbs. Alerts:"
            " ImmichContainerMemoryNearLimit, ImmichMemoryLow.",
            w=16,
        ),
        lines(
            "Processes killed for memory",
            Query(
                """
                sum by (component) (
                  increase(immich_vitals_container_oom_events_total{@, component=~"$component"}[$__rate_interval])
                )
                """,
                "{{component}}",
            ),
            "short",
            "When a container reached its memory limit and lost a process. Bad: any. Alert: ImmichContainerOOMKilled.",
            bars=True,
            h=7,
        ),
        lines(
            "CPUs in use",
            Query(
                f"sum by (container) (rate(immich_vitals_container_cpu_seconds_total{{{OURS}}}[$__rate_interval]))",
                "{{container}}",
            ),
            "short",
            "How many CPUs each container keeps busy. Much is normal while jobs run; all CPUs for hours with empty"
            " queues is not. No alert speaks of it.",
            h=7,
        ),
    )
    made.row("The machine").add(
        shared.memory_available(w=8, h=8),
        lines(
            "Standstill",
            Query(
                waiting("full"),
                "{{resource}}",
            ),
            "percentunit",
            "Part of the time in which nothing could run because all waited for it. Bad: memory above the line; io"
            " there is a disk that cannot follow. Alert: ImmichMemoryPressure.",
            given=((CLEAR, None), (BAD, limit("memory_pressure_ratio"))),
            w=8,
            unknown="unknown: not every kernel tells",
        ),
        lines(
            "Waiting",
            Query(
                waiting("some"),
                "{{resource}}",
            ),
            "percentunit",
            "Part of the time in which some program waited for it. CPU is busy at every import; memory should be near"
            " 0. Where it is, ImmichMemoryLow stays quiet; no other alert speaks of it.",
            w=8,
            unknown="unknown: not every kernel tells",
        ),
        lines(
            "Load per CPU",
            Query("max(immich_vitals_host_load1{@} / immich_vitals_host_cpus{@})", "load"),
            "short",
            "Tasks that run or wait, for each CPU. Above 1 they wait for each other, or for a disk; for hours without"
            " jobs it is a fault. No alert speaks of it.",
            w=8,
            h=6,
        ),
        number(
            "Swap in use",
            # No swap is nothing to use: 0 of 0 is no sample.
            Query(
                "1 - min(immich_vitals_host_swap_free_bytes{@} / (immich_vitals_host_swap_total_bytes{@} > 0))",
            ),
            "percentunit",
            "Part of the swap space that is used. Much of it is no fault while `Standstill` is low. No alert speaks of"
            " it.",
            decimals=0,
            words=(Word("no swap", "immich_vitals_host_swap_total_bytes{@} == 0"),),
            h=6,
        ),
        number(
            "Killed by the kernel",
            Query("sum(increase(immich_vitals_host_oom_kills_total{@}[$__range]))"),
            "short",
            "Processes of the whole machine that the kernel killed for lack of memory in the time shown. Bad: any."
            " Alert: ImmichHostOOM.",
            given=((WELL, None), (BAD, 1)),
            decimals=0,
            h=6,
        ),
        number(
            "Memory in all",
            Query("max(immich_vitals_host_memory_total_bytes{@})"),
            "bytes",
            "Memory of the machine. Immich itself asks for 6 GB or more; with less, turn machine learning off. No"
            " alert speaks of it.",
            h=6,
        ),
        number(
            "Up for",
            Query("time() - max(immich_vitals_host_boot_timestamp_seconds{@})"),
            "s",
            "How long ago the machine booted. Bad: a boot that nobody asked for. No alert speaks of it.",
            decimals=0,
            h=6,
        ),
    )
    made.row("Versions").add(
        rows(
            "Versions of Immich",
            Query(
                """
                max by (component, version) (immich_vitals_version_info{@, component=~"$component"})
                or label_replace(
                  max by (version) (immich_vitals_version_latest_info{@}), "component", "latest release", "", ""
                )
                """,
                table=True,
            ),
            [Column("component", "Part"), Column("version", "Version")],
            "What runs, and the newest release that Immich's own check knows of. Bad: parts of different versions."
            " Alerts: ImmichVersionSkew, ImmichUpdateAvailable.",
            sort="component",
            w=8,
            h=6,
            empty="unknown",
        ),
        shared.parts_fit(w=4, h=6),
        shared.latest_release(w=4, h=6),
        number(
            "Upgraded",
            Query("1000 * max(immich_vitals_version_changed_timestamp_seconds{@})"),
            "dateTimeFromNow",
            "When Immich first started in its present version. Bad: today, and nobody upgraded it. Alert:"
            " ImmichUpdateAvailable.",
            h=6,
        ),
        number(
            "Failed migrations",
            Query(
                """
                sum(increase(immich_vitals_log_matches_total{@,
                  component=~"server|microservices", signature=~"migration_failed|schema_missing"
                }[$__range]))
                """,
            ),
            "short",
            "How often the server said in the time shown that a migration failed, or that a table is not there. Bad:"
            " any that goes on after the upgrade. Alert: ImmichMigrationFailed.",
            given=((WELL, None), (BAD, 1)),
            decimals=0,
            words=(Word("no log is followed", 'immich_vitals_collector_enabled{@, collector="log"} == 0'),),
            h=6,
        ),
    )
    return made

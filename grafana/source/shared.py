"""Panels that stand on Triage and on the dashboard of their subject.

`only` are further matchers of the dashboard's own variables, as `, route=~"$route"`.
"""

from grafana_foundation_sdk.builders import bargauge, stat, statetimeline, timeseries

from grafana.source.kit import (
    BAD,
    CLEAR,
    NOTE,
    SOON,
    WELL,
    YES_NO,
    Query,
    State,
    Word,
    bars,
    limit,
    lines,
    number,
    timeline,
)

STAGES = 'stage!="encoded_video"'
"""Most videos need no encoded copy, so those without one are no fault."""
PENDING = f"sum by (stage) (immich_vitals_library_pending{{@, {STAGES}}})"
REQUIRED = f"sum by (stage) (immich_vitals_library_required{{@, {STAGES}}})"
COVERAGE = f"1 - {PENDING} / ({REQUIRED} > 0)"
VERSIONS_LOOKED_AT = 'immich_vitals_collector_success{@, collector="version"} == 1'


def first_byte(only: str = "", *, w: int, h: int) -> timeseries.Panel:
    return lines(
        "Time to the first byte",
        Query(f"max by (route) (immich_vitals_probe_first_byte_seconds{{@{only}}})", "{{route}}"),
        "s",
        "How long the smallest answer takes. External above the line and direct far below it: the proxy or the"
        " line is slow. Both above it: the server is. Alert: ImmichProxySlow.",
        given=((CLEAR, None), (SOON, limit("proxy_first_byte_seconds"))),
        w=w,
        h=h,
    )


def assets_that_have_it(*, w: int, h: int) -> bargauge.Panel:
    return bars(
        "Assets that have it now",
        Query(COVERAGE, "{{stage}}"),
        "percentunit",
        "Part of the photos and videos that need a stage and have its result. Red: less than the alert allows;"
        " during an import it is on its way. Alerts: ImmichThumbnailCoverageLow, ImmichThumbnailCoverageDropped,"
        " ImmichWorkLeftBehind.",
        ((BAD, None), (WELL, limit("coverage_ratio"))),
        w=w,
        h=h,
        most=1.0,
    )


def never_processed(*, h: int) -> stat.Panel:
    return number(
        "Never processed",
        Query("sum(immich_vitals_library_unprocessed_assets{@})"),
        "short",
        "Assets without a job-status row: Immich's own runs for missing work never see them. Orange while nothing"
        " is uploaded: their jobs were refused. Alert: ImmichAssetsNeverProcessed.",
        given=((WELL, None), (SOON, limit("never_processed_assets") + 1)),
        h=h,
    )


def logs_followed(*, w: int, h: int) -> statetimeline.Panel:
    return timeline(
        "Logs that are followed",
        Query('min by (component) (immich_vitals_log_stream_up{@, component=~"$component"})', "{{component}}"),
        (State(1, "followed", WELL), State(0, "not followed", BAD)),
        "The exporter can read each part's log. Not followed: its troubles are not seen, and silence means nothing."
        " Alert: ImmichLogsNotFollowed.",
        w=w,
        h=h,
    )


def memory_available(*, w: int, h: int) -> timeseries.Panel:
    return lines(
        "Memory available",
        Query(
            """
            min by (instance) (
              immich_vitals_host_memory_available_bytes{@} / immich_vitals_host_memory_total_bytes{@}
            )
            """,
            "{{instance}}",
        ),
        "percentunit",
        "Memory of the machine that programs can still get. In the red Linux drops the pages of running programs and"
        " everything crawls. Alerts: ImmichMemoryLow, ImmichHostOOM.",
        given=((BAD, None), (CLEAR, limit("memory_low_ratio"))),
        w=w,
        h=h,
        most=1.0,
    )


def parts_fit(*, w: int, h: int) -> stat.Panel:
    return number(
        "Parts fit together",
        Query("1 - max(immich_vitals_version_skew{@})"),
        "none",
        "All parts that run are of one version. No: something was not upgraded with the rest. Alert:"
        " ImmichVersionSkew.",
        states=YES_NO,
        words=(Word("one version known", VERSIONS_LOOKED_AT),),
        w=w,
        h=h,
    )


def latest_release(*, w: int, h: int) -> stat.Panel:
    return number(
        "Latest release",
        Query("max(immich_vitals_version_update_available{@})"),
        "none",
        "Whether a newer release is out, by Immich's own check. Alert: ImmichUpdateAvailable.",
        states=(State(0, "runs", WELL), State(1, "is newer", NOTE)),
        words=(Word("not checked", VERSIONS_LOOKED_AT),),
        w=w,
        h=h,
    )

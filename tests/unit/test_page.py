from datetime import datetime

from immich_vitals.collector import Unavailable
from immich_vitals.metrics import Metric, Sample
from immich_vitals.page import render
from immich_vitals.runner import Runner
from immich_vitals.vitals import vital_signs
from support.fakes import FakeCollector

SAMPLED = Metric("file_sampled", "x", ("kind", "result"))
PROBED = Metric("probe_success", "x", ("probe", "route"))
NEWEST = Metric("backup_newest_timestamp_seconds", "x", ("kind",))
INTACT = Metric("backup_intact", "x", ("kind",))
REQUIRED = Metric("library_required", "x", ("stage",))
PENDING = Metric("library_pending", "x", ("stage",))
FOUND = Metric("container_found", "x", ("component",))
STATE = Metric("container_state", "x", ("component", "container", "state"))
JOBS = Metric("queue_jobs", "x", ("queue", "state"))
SIZE = Metric("filesystem_size_bytes", "x", ("role", "path"))
AVAIL = Metric("filesystem_avail_bytes", "x", ("role", "path"))


def said(samples: list[Sample]) -> dict[str, str]:
    return {sign.name: sign.text for sign in vital_signs(samples) if sign.known}


def test_nothing_known_is_said_as_such() -> None:
    """No number is made up where there is none."""
    assert said([]) == {}


def test_coverage_is_not_rounded_up() -> None:
    """One missing thumbnail in a million is not 100 %."""
    found = said([REQUIRED.sample(1_000_000, stage="thumbnail"), PENDING.sample(1, stage="thumbnail")])
    assert found["Thumbnails"] == "99.99 % of 1000000 assets have one, 1 pending"


def test_containers() -> None:
    """Missing and stopped containers are named."""
    found = said(
        [
            FOUND.sample(1, component="server"),
            FOUND.sample(0, component="redis"),
            STATE.sample(0, component="server", container="immich_server", state="running"),
            STATE.sample(1, component="server", container="immich_server", state="exited"),
        ]
    )
    assert found["Containers"] == "0 of 1 running, immich_server is exited, no redis container"


def test_the_fullest_disk_is_shown() -> None:
    """Of several file systems the one with the least room counts."""
    found = said(
        [
            SIZE.sample(100 * 2**30, role="media", path="/data"),
            AVAIL.sample(50 * 2**30, role="media", path="/data"),
            SIZE.sample(10 * 2**30, role="database", path="/pg"),
            AVAIL.sample(2**30, role="database", path="/pg"),
        ]
    )
    assert found["Disk"] == "1.0 GiB free for database (10%)"


def test_jobs() -> None:
    """Waiting jobs count whether they stand in the list, by priority, or behind a pause."""
    states = {"waiting": 1, "prioritized": 2, "paused": 4, "active": 8, "failed": 16}
    found = said([JOBS.sample(value, queue="q", state=state) for state, value in states.items()])
    assert found["Jobs"] == "7 waiting, 8 active"


def test_the_page_escapes_what_it_shows() -> None:
    """What a server says cannot become markup."""

    def answer(ctx: object) -> list[Sample]:
        raise Unavailable("<script>alert(1)</script>", mend="<b>")

    runner = Runner([FakeCollector(answer)], {"redis": ("Redis.", "Set REDIS_HOSTNAME & more.")})
    samples = runner.scrape(1)
    page = render(runner.statuses(), samples, "/metrics")
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;. To mend it: &lt;b&gt;." in page
    assert "No answer from: fake." in page
    assert "Set REDIS_HOSTNAME &amp; more." in page


def test_files_access_and_backup() -> None:
    """What is lost, what fails by which route, and how old and whole the last dump is."""
    found = said(
        [
            SAMPLED.sample(97, kind="original", result="ok"),
            SAMPLED.sample(2, kind="original", result="missing"),
            SAMPLED.sample(1, kind="preview", result="empty"),
            SAMPLED.sample(50, kind="preview", result="unmapped"),
            PROBED.sample(1, probe="ping", route="direct"),
            PROBED.sample(0, probe="websocket", route="external"),
            PROBED.sample(0, probe="machine_learning", route="direct"),
            NEWEST.sample(datetime(2026, 11, 21, 2, 0).timestamp(), kind="database"),
            INTACT.sample(0, kind="database"),
        ]
    )
    assert found["Files"] == "3 of 100 looked at are missing or empty"
    assert found["Access"] == "fails: websocket (external)"
    assert found["Backup"] == "last dump of the database 2026-11-21 02:00, NOT whole"
    well = said([SAMPLED.sample(5, kind="original", result="ok"), PROBED.sample(1, probe="ping", route="external")])
    assert (well["Files"], well["Access"]) == ("all of 5 looked at are there", "well through it")

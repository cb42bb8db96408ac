"""Fixtures that start the real parts: Postgres 16 and 18, Redis."""

import os
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from immich_vitals.collector import Context, Deadline, SystemClock
from immich_vitals.demo.servers import Postgres, Redis
from support.stand_in import StandIn, standing_in


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite expected.prom of the golden cases")
    parser.addoption("--all-drills", action="store_true", help="run every drill, and not those of each kind alone")
    parser.addoption("--drills-report", action="store_true", help="write what the drills show into docs/drills.md")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, object, object]:
    """Where every part is there, as in CI, a skipped test is a failed one."""
    report = yield
    if isinstance(report, pytest.TestReport) and report.skipped and os.environ.get("FORBID_SKIPS"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, and FORBID_SKIPS is set: {report.longrepr}"
    return report


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--update-golden"))


@pytest.fixture
def context() -> Context:
    """A context with ten seconds and the system's clock."""
    return Context(Deadline.after(10.0), SystemClock())


@pytest.fixture(scope="session")
def server_folder() -> Iterator[Path]:
    """A folder that the unprivileged user of the embedded servers can reach.

    Not below pytest's own: each start of pytest, also of another one beside this, closes that to other users.
    """
    with tempfile.TemporaryDirectory(prefix="immich-vitals-test-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture(scope="session")
def postgres16(server_folder: Path) -> Iterator[Postgres]:
    with Postgres(server_folder / "postgres16", 16) as server:
        yield server


@pytest.fixture(scope="session")
def postgres18(server_folder: Path) -> Iterator[Postgres]:
    with Postgres(server_folder / "postgres18", 18) as server:
        yield server


@pytest.fixture(scope="session", params=[16, 18])
def postgres(request: pytest.FixtureRequest) -> Postgres:
    """Each of the embedded Postgres versions in turn; tests make a database of their own in it."""
    server: Postgres = request.getfixturevalue(f"postgres{request.param}")
    return server


@pytest.fixture
def redis_server(server_folder: Path, tmp_path: Path) -> Iterator[Redis]:
    with Redis(tmp_path / "redis") as server:
        yield server


@pytest.fixture(scope="session")
def stand_in(postgres16: Postgres, server_folder: Path) -> Iterator[StandIn]:
    """A stand-in for Immich's server and machine learning; tests leave it as it was."""
    with standing_in(postgres16, server_folder) as found:
        yield found

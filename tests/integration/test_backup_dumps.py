"""Dumps by the real pg_dump and pg_dumpall, and what Immich's own database says of its dumps."""

import gzip
import subprocess
from collections.abc import Mapping
from pathlib import Path

import psycopg
import pytest

from immich_vitals.collector import Context, Deadline, Unavailable
from immich_vitals.demo.servers import Postgres
from immich_vitals.grants import grants_sql
from immich_vitals.sources.dumps import Verdict, verify
from immich_vitals.sources.immich_facts import BACKUP_FACTS, VERSION_FACTS, Facts, Told, read_facts
from immich_vitals.sources.pace import Pace
from immich_vitals.sources.postgres import Database
from support.immich_database import VERSIONS, config, immich_database, schema

STATE = """
    INSERT INTO system_metadata (key, value) VALUES
      ('system-config', '{"backup": {"database": {"enabled": false, "cronExpression": "0 3 * * 0"}},
                          "notifications": {"smtp": {"transport": {"password": "hidden"}}}}'),
      ('version-check-state', '{"checkedAt": "2026-11-20T17:17:49.588Z", "releaseVersion": "v2.8.0"}')
    ON CONFLICT (key) DO UPDATE SET value = excluded.value
"""


def dumped(server: Postgres, program: str, database: str) -> bytes:
    """As Immich calls them."""
    arguments = ["--dbname", server.dsn(database), "--clean", "--if-exists"]
    done = subprocess.run([server.binaries / program, *arguments], stdout=subprocess.PIPE, check=True)
    return done.stdout


@pytest.mark.parametrize("program", ["pg_dump", "pg_dumpall"])
def test_real_dumps(program: str, postgres: Postgres, tmp_path: Path) -> None:
    """A real dump is whole, plain or packed; cut anywhere or with one bit changed it is not."""
    with immich_database(postgres, "2.7.5", rows=True) as database:
        content = dumped(postgres, program, database)
    path, whole = tmp_path / "dump.sql.gz", gzip.compress(content, 6)

    def judged(data: bytes, packed: bool = True) -> Verdict | None:
        path.write_bytes(data)
        return verify(str(path), packed, Pace(1e9), lambda: False)

    assert judged(whole) == Verdict.WHOLE
    assert judged(content, packed=False) == Verdict.WHOLE
    closing = content.rindex(b"dump complete")
    for end in (closing, closing - 200, len(content) // 2, 100):
        assert judged(gzip.compress(content[:end])) == Verdict.CUT
        assert judged(content[:end], packed=False) == Verdict.CUT
    for end in (len(whole) - 1, len(whole) - 8, len(whole) // 2, 20):
        assert judged(whole[:end]) == Verdict.DAMAGED
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 4
    assert judged(bytes(flipped)) in (Verdict.DAMAGED, Verdict.CUT)


def test_custom_format_cannot_be_judged(postgres18: Postgres, tmp_path: Path) -> None:
    """pg_dump's own format has no end to look for: nothing is said of it."""
    done = subprocess.run(
        [postgres18.binaries / "pg_dump", "-Fc", "--dbname", postgres18.dsn()], stdout=subprocess.PIPE, check=True
    )
    path = tmp_path / "immich.dump"
    path.write_bytes(done.stdout)
    assert verify(str(path), False, Pace(1e9), lambda: False) == Verdict.UNKNOWN


def asked(server: Postgres, database: str, facts: Facts, user: str = "postgres") -> Told:
    source = Database(config(server, database, user))
    try:
        return read_facts(source, database, facts, Deadline.after(10.0))
    finally:
        source.close()


def test_facts_of_a_real_immich(postgres: Postgres) -> None:
    """Real rows of 2.7.5: when a dump last failed, and the version that runs; what nobody set is not there."""
    with immich_database(postgres, "2.7.5", rows=True) as database:
        backup, version = asked(postgres, database, BACKUP_FACTS), asked(postgres, database, VERSION_FACTS)
    assert moments(backup.values) == {"failed": 1795199038.113492}
    assert version.values["version"] == "2.7.5"
    assert float(version.values["changed"]) == pytest.approx(1795195069.588)
    assert "releaseVersion" not in version.values


def moments(values: Mapping[str, str]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}


def test_other_notices_are_not_of_dumps(postgres18: Postgres) -> None:
    """Notices of other jobs, of other levels and of people do not count; those of old versions do."""
    insert = (
        'INSERT INTO notification (id, "createdAt", type, level, title, description) VALUES'
        " (gen_random_uuid(), to_timestamp({}), '{}', '{}', 'Job Failed', '{}');"
    )
    setup = "".join(
        insert.format(*row)
        for row in (
            (100, "JobFailed", "error", "Job database-backup failed with error: x"),
            (200, "JobFailed", "error", "Job LibraryScan failed with error: DatabaseBackup"),
            (300, "JobFailed", "warning", "Job DatabaseBackup failed with error: x"),
            (400, "AlbumUpdate", "error", "Job DatabaseBackup failed with error: x"),
        )
    )
    with immich_database(postgres18, "2.7.5", setup=setup) as database:
        assert moments(asked(postgres18, database, BACKUP_FACTS).values) == {"failed": 100.0}


@pytest.mark.parametrize("version", VERSIONS)
def test_grants_are_enough(version: str, postgres18: Postgres) -> None:
    """The role of `grants` learns what a superuser learns, in every version, through functions that give no more."""
    setup = STATE if "system_metadata" in schema(version) else ""
    with immich_database(postgres18, version, rows=version == "2.7.5", setup=setup) as database:
        role = f"facts-{version}"
        with postgres18.connect(database) as admin:
            admin.execute(grants_sql(database, role).encode())
        try:
            for facts in (BACKUP_FACTS, VERSION_FACTS):
                told = asked(postgres18, database, facts, role)
                assert told == asked(postgres18, database, facts)
                assert "hidden" not in str(told.values)
            if setup:
                assert asked(postgres18, database, BACKUP_FACTS, role).values["backup.database.enabled"] == "false"
                assert asked(postgres18, database, VERSION_FACTS, role).values["releaseVersion"] == "v2.8.0"
            with postgres18.connect(database, user=role) as connection:
                for table in {"notification", "system_metadata", "version_history"} & set(schema(version)):
                    with pytest.raises(psycopg.errors.InsufficientPrivilege):
                        connection.execute(f"SELECT * FROM {table}".encode())
        finally:
            with postgres18.connect(database) as admin:
                admin.execute(f'DROP OWNED BY "{role}"; DROP ROLE "{role}"'.encode())


def test_without_the_right(postgres18: Postgres, context: Context) -> None:
    """A role without the function is told what to run."""
    with immich_database(postgres18, "2.7.5") as database:
        with postgres18.connect(database) as admin:
            admin.execute("CREATE ROLE stranger LOGIN")
        try:
            with pytest.raises(Unavailable, match="notification and system_metadata") as caught:
                asked(postgres18, database, BACKUP_FACTS, "stranger")
        finally:
            with postgres18.connect(database) as admin:
                admin.execute("DROP ROLE stranger")
    assert "grants" in caught.value.mend

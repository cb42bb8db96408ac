"""What answers as Postgres may say anything: a collector tells what it can, or why it cannot."""

from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from immich_vitals.collectors.backup import BackupCollector
from immich_vitals.collectors.library import LibraryCollector
from immich_vitals.collectors.postgres import PostgresCollector, postgres_samples
from immich_vitals.collectors.version import VersionCollector
from immich_vitals.config import load
from immich_vitals.demo.schema import Connection, create_schema
from immich_vitals.demo.servers import Postgres
from immich_vitals.sources.cron import longest_gap
from immich_vitals.sources.immich_schema import schema_from
from immich_vitals.sources.postgres_facts import facts_from
from immich_vitals.sources.versions import Release
from immich_vitals.sources.versions import shown as version_shown
from support.fuzz import WORDS, all_collected, fuzzed, seldom, shown, told

DATABASE = "fuzz"
# What psycopg makes of the types that the queries ask for; the first of each pair is the usual one.
TEXT = st.none() | WORDS
WHOLE = st.none() | st.integers(-(2**63), 2**63 - 1)
FLOAT = st.none() | st.floats()
SERVER = st.tuples(TEXT, TEXT, FLOAT, FLOAT, st.none() | st.booleans(), WHOLE, TEXT, FLOAT, WHOLE, WHOLE, FLOAT, WHOLE)
STATES = st.sampled_from((None, "active", "idle", "idle in transaction", "fastpath function call", "new in 19"))
SETTINGS = st.sampled_from(("fsync", "full_page_writes", "default_transaction_read_only")) | WORDS
DATABASES = st.tuples(TEXT, st.none() | st.booleans(), WHOLE, FLOAT, FLOAT, WHOLE, st.none() | st.booleans())
EXTENSIONS = st.tuples(st.sampled_from(("vector", "vchord")), TEXT, TEXT)


def _rows(row: st.SearchStrategy[tuple[object, ...]], by: int = 0) -> st.SearchStrategy[list[tuple[object, ...]]]:
    """Rows of which no two have the same at one place, as GROUP BY and the catalogue have it."""
    return st.lists(row, max_size=4, unique_by=lambda found: str(found[by]))


@fuzzed
@given(
    SERVER,
    _rows(st.tuples(STATES, WHOLE, FLOAT)),
    _rows(st.tuples(SETTINGS, WORDS)),
    _rows(DATABASES),
    _rows(EXTENSIONS),
)
def test_server(
    server: tuple[object, ...],
    activity: list[tuple[object, ...]],
    settings: list[tuple[object, ...]],
    databases: list[tuple[object, ...]],
    extensions: list[tuple[object, ...]],
) -> None:
    """Rows of the types that the queries give, with any value in them."""
    ours = [(name, number == 0, *others) for number, (name, _, *others) in enumerate(databases)]  # one is connected to
    facts = facts_from([[server], activity, settings, ours, extensions])
    shown(PostgresCollector, postgres_samples(facts))


COLUMNS = st.tuples(
    st.sampled_from(("public", "immich")) | WORDS, st.sampled_from(("asset", "assets", "user", "exif")) | WORDS,
    st.sampled_from(("id", "type", "createdAt")) | WORDS, st.booleans(), st.booleans(),
)  # fmt: skip


@fuzzed
@given(st.lists(COLUMNS, max_size=8), st.booleans())
def test_schema(columns: list[tuple[object, ...]], function: bool) -> None:
    """Any tables and columns, Immich's or not."""
    told(lambda: schema_from(columns, [(function,)], DATABASE))


MOMENTS = st.sampled_from(
    ("4713-01-01 00:00:00+00 BC", "infinity", "-infinity", "294276-12-31 23:59:59+00", "0001-01-01 00:00:00+00 BC",
     "1970-01-01 00:00:00+00", "2026-11-20 19:04:42.459134+00", "9999-12-31 23:59:59.999999+00")
)  # fmt: skip
VERSIONS = WORDS.filter(lambda word: "\0" not in word and "\ud800" not in word) | st.sampled_from(("v3.0.0", "2.7"))


@pytest.fixture(scope="module")
def server(postgres18: Postgres) -> Iterator[Postgres]:
    with postgres18.connect() as admin:
        admin.execute(f"CREATE DATABASE {DATABASE}".encode())
    with postgres18.connect(DATABASE) as admin:
        create_schema(admin)
        _make(admin)
    yield postgres18
    with postgres18.connect() as admin:
        admin.execute(f"DROP DATABASE {DATABASE} WITH (FORCE)".encode())


def _make(admin: Connection) -> None:
    user = "md5('user')::uuid"
    admin.execute(
        f"""INSERT INTO "user" (id, name, email, "oauthId", password, "profileImagePath", "profileChangedAt",
        "quotaUsageInBytes", status) VALUES ({user}, 'x', 'x', '', '', '', now(), 0, 'active')""".encode()
    )
    admin.execute(
        f"""INSERT INTO asset (id, "deviceAssetId", "ownerId", "deviceId", type, "originalPath", "originalFileName",
        "fileCreatedAt", "fileModifiedAt", "localDateTime", checksum, "checksumAlgorithm", status, visibility)
        VALUES (md5('asset')::uuid, 'x', {user}, 'x', 'IMAGE', '/x', 'x', now(), now(), now(), 'x', 'sha1', 'active',
        'timeline')""".encode()
    )


@seldom
@given(MOMENTS, MOMENTS, VERSIONS)
@example("infinity", "infinity", "v2.7.5")
@example("-infinity", "4713-01-01 00:00:00+00 BC", "v2.7.5")
def test_moments_of_the_database(server: Postgres, added: str, changed: str, version: str) -> None:
    """Dates that only Postgres has, and versions that no release has, in the tables that are read."""
    with server.connect(DATABASE) as admin:
        admin.execute('UPDATE asset SET "createdAt" = %s', (added,))
        admin.execute("DELETE FROM version_history")
        admin.execute('INSERT INTO version_history (version, "createdAt") VALUES (%s, %s)', (version, changed))
        admin.execute("DELETE FROM notification")
        admin.execute(
            """INSERT INTO notification ("createdAt", "userId", level, type, title, description)
            VALUES (%s, md5('user')::uuid, 'error', 'JobFailed', 'x', 'Job DatabaseBackup failed')""",
            (changed,),
        )
        admin.execute("DELETE FROM system_metadata")
        admin.execute(
            """INSERT INTO system_metadata VALUES ('version-check-state',
            jsonb_build_object('releaseVersion', %s::text, 'checkedAt', %s::text))""",
            (version, changed),
        )
    config = load(
        {"DB_URL": f"postgresql://postgres@127.0.0.1:{server.port}/{DATABASE}", "IMMICH_MEDIA_LOCATION": "/tmp"}
    )
    all_collected(config, LibraryCollector, VersionCollector, BackupCollector)


@fuzzed
@given(WORDS | st.text("0123456789*/-,? adenosu@", max_size=20))
@example("*/0 * * * *")
@example("0-59/99999999999999999999 0 1 1 *")
@example("9" * 5000 + " * * * *")
@example("0 0 30 2 *")
def test_cron(expression: str) -> None:
    """Immich's schedule for its dumps, which people write."""
    gap = longest_gap(expression)
    assert gap is None or 0 < gap < 6 * 366 * 86400


@fuzzed
@given(WORDS | st.text("v0123456789.-rcbetalph+", max_size=20))
def test_version(text: str) -> None:
    release = Release.of(text)
    assert release is None or Release.of(str(release)) is not None
    assert version_shown(text) is None or len(str(version_shown(text))) <= 40

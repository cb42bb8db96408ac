import json
from collections.abc import Iterable

import pytest

from immich_vitals import cli
from immich_vitals.collector import Collector, Context, Unavailable
from immich_vitals.config import Config
from immich_vitals.metrics import Sample
from immich_vitals.runner import Runner
from support.fakes import VALUE, FakeCollector


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests see no settings of the machine they run on, and leave the log as it is."""
    monkeypatch.setattr(cli.logs, "set_up", lambda level: None)
    for name in ("DB_URL", "DB_HOSTNAME", "DB_PASSWORD", "REDIS_HOSTNAME", "DOCKER_HOST", "UPLOAD_LOCATION"):
        monkeypatch.delenv(name, raising=False)


def use(monkeypatch: pytest.MonkeyPatch, collectors: list[Collector], disabled: dict[str, tuple[str, str]]) -> None:
    def build(settings: Config) -> Runner:
        return Runner(collectors, disabled)

    monkeypatch.setattr(cli, "build", build)


def refuse(ctx: Context) -> Iterable[Sample]:
    raise Unavailable("redis refused the connection at redis:6379", mend="start Redis or set REDIS_HOSTNAME")


def test_check_when_all_is_well(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """All enabled collectors answered: exit 0; what is off is listed with the reason and is not called ok."""
    use(monkeypatch, [FakeCollector(lambda ctx: [], name="host")], {"redis": ("Redis.", "Set REDIS_HOSTNAME.")})
    assert cli.main(["check"]) == 0
    host, redis = capsys.readouterr().out.splitlines()
    assert host.startswith("host   ok      Answered in ")
    assert redis == "redis  off     Set REDIS_HOSTNAME."


def test_check_when_one_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One that could not answer is FAILED with what happened and the mend, and the exit code is 1."""
    use(monkeypatch, [FakeCollector(lambda ctx: [], name="host"), FakeCollector(refuse, name="redis")], {})
    assert cli.main(["check"]) == 1
    assert capsys.readouterr().out.splitlines()[1] == (
        "redis  FAILED  Redis refused the connection at redis:6379. To mend it: start Redis or set REDIS_HOSTNAME."
    )


def test_check_of_nothing_is_not_ok(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is enabled nothing was checked, and that is no success."""
    use(monkeypatch, [], {"redis": ("Redis.", "Set REDIS_HOSTNAME.")})
    assert cli.main(["check"]) == 1


def test_scrape_prints_the_metrics(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`scrape` writes the exposition to standard output."""
    use(monkeypatch, [FakeCollector(lambda ctx: [VALUE.sample(3)])], {})
    assert cli.main(["scrape"]) == 0
    assert "immich_vitals_fake_value 3.0" in capsys.readouterr().out


def test_wrong_settings(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every wrong setting is one line on standard error, and the exit code is 2."""
    monkeypatch.setenv("DB_PORT", "x")
    monkeypatch.setenv("REDIS_PORT", "y")
    assert cli.main(["check"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


@pytest.mark.parametrize("arguments", [["--log.level=debug", "scrape"], ["scrape", "--log.level=debug"]])
def test_flags_before_and_after_the_command(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    """A flag counts wherever it stands."""
    levels: list[str] = []
    use(monkeypatch, [], {})
    monkeypatch.setattr(cli.logs, "set_up", levels.append)
    assert cli.main(arguments) == 0
    assert levels == ["debug"]


def test_grants_can_be_given_to_psql_whole(capsys: pytest.CaptureFixture[str]) -> None:
    """What stands after the SQL, the line for Redis, is a comment in it."""
    assert cli.main(["grants", "--role", "vitals"]) == 0
    sql, rest = capsys.readouterr().out.rsplit("$;", 1)
    assert "'vitals'" in sql
    assert "ACL SETUSER vitals " in rest
    assert all(line.startswith("--") for line in rest.strip().splitlines())


@pytest.mark.parametrize("command", ["metrics", "config"])
def test_reference(capsys: pytest.CaptureFixture[str], command: str) -> None:
    """The references come as Markdown and as JSON of the same content."""
    assert cli.main([command, "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert cli.main([command]) == 0
    markdown = capsys.readouterr().out
    assert all(f"`{row['name']}`" in markdown for row in rows)

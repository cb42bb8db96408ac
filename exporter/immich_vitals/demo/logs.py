"""The demo's log files. Postgres and Redis write theirs themselves; those of the server, of machine learning and of the
proxy, which cannot run here, hold the lines that the real ones write at a good start, and what a fault adds."""

from datetime import datetime
from pathlib import Path

from immich_vitals.demo.photos import VERSION

_START = {
    "server": (
        "Starting immich-server",
        "Detected CPU Cores: 4",
        "Starting api worker",
        "Starting microservices worker",
        "{nest} LOG [Microservices:EventRepository] Initialized websocket server",
        "{nest} LOG [Microservices:DatabaseRepository] Running migrations",
        "{nest} LOG [Microservices:DatabaseRepository] Finished running migrations",
        "{nest} LOG [Microservices:Bootstrap] Immich Microservices is running [v{version}] [production] ",
        "{nest} LOG [Api:Bootstrap] Immich Server is listening on http://[::1]:2283 [v{version}] [production] ",
    ),
    "machine_learning": (
        "[{rich}] INFO     Starting gunicorn 25.1.0",
        "[{rich}] INFO     Booting worker with pid: 8",
        "[{rich}] INFO     Application startup complete.",
        "[{rich}] INFO     Shutting down due to inactivity.",
        "[{rich}] ERROR    Worker (pid:8) was sent SIGINT!",
    ),
    "proxy": ("{nginx} [notice] 1#1: nginx/1.29.3", "{nginx} [notice] 1#1: start worker processes"),
}


class Logs:
    """One file for each component, named after it, in a folder."""

    def __init__(self, folder: Path, database: Path, redis: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self.path("database").symlink_to(database)
        self.path("redis").symlink_to(redis)
        for component, lines in _START.items():
            self.say(component, *lines)

    def path(self, component: str) -> Path:
        return self._folder / f"{component}.log"

    def setting(self) -> str:
        """The value of IMMICH_VITALS_LOG_FILES."""
        return ", ".join(f"{name}={self.path(name)}" for name in (*_START, "database", "redis"))

    def say(self, component: str, *lines: str) -> None:
        """Add lines to a log. `{nest}`, `{rich}` and `{nginx}` become the heads of such lines of this moment."""
        now = datetime.now()
        heads = {
            "nest": f"[Nest] 7  - {now:%m/%d/%Y}, {now.hour % 12 or 12}:{now:%M:%S %p}    ",
            "rich": f"{now:%m/%d/%y %H:%M:%S}",
            "nginx": f"{now:%Y/%m/%d %H:%M:%S}",
            "version": VERSION,
        }
        with self.path(component).open("a", encoding="utf-8") as file:
            for line in lines:
                for name, head in heads.items():
                    line = line.replace("{" + name + "}", head)  # not format(): lines may hold JSON
                file.write(line + "\n")

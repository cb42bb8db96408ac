"""Our log: one line an event, as `key=value` pairs (logfmt), on standard error."""

import logging
import traceback
from types import TracebackType

from logfmter import Logfmter

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class Formatter(Logfmter):
    """Lines of `key=value`. A traceback has the kind of each error and where it came from, not its words: those of
    `KeyError` or `ValueError` quote what was read, a name or a path, and logs are pasted into public issues."""

    def formatException(self, ei: ExcInfo) -> str:
        parts: list[str] = []
        error = ei[1]
        while error is not None:
            came_from = "".join(traceback.format_tb(error.__traceback__))
            parts.append(f"Traceback (most recent call last):\n{came_from}{type(error).__qualname__}")
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        return "\n\nled to\n\n".join(reversed(parts))


def set_up(level: str) -> None:
    """Log everything of this level and above, and of the libraries' own words only errors.

    They warn of what comes to them over the network: uvicorn of every request that is not HTTP, urllib3 of every answer
    whose head it cannot read, that with a traceback. The collectors tell the same once, and not at each try.
    """
    for number in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
        logging.addLevelName(number, logging.getLevelName(number).lower())
    handler = logging.StreamHandler()
    handler.setFormatter(
        Formatter(keys=["ts", "level"], mapping={"ts": "asctime", "level": "levelname"}, datefmt="%Y-%m-%dT%H:%M:%S%z")
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    for noisy in ("uvicorn", "urllib3", "psycopg", "redis"):
        logging.getLogger(noisy).setLevel(logging.ERROR)

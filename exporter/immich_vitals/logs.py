"""Our log: one line an event, as `key=value` pairs (logfmt), on standard error."""

import logging

from logfmter import Logfmter


def set_up(level: str) -> None:
    """Log everything of this level and above, and of the libraries' own words only errors.

    They warn of what comes to them over the network: uvicorn of every request that is not HTTP, urllib3 of every answer
    whose head it cannot read, that with a traceback. The collectors tell the same once, and not at each try.
    """
    for number in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
        logging.addLevelName(number, logging.getLevelName(number).lower())
    handler = logging.StreamHandler()
    handler.setFormatter(
        Logfmter(keys=["ts", "level"], mapping={"ts": "asctime", "level": "levelname"}, datefmt="%Y-%m-%dT%H:%M:%S%z")
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    for noisy in ("uvicorn", "urllib3", "psycopg", "redis"):
        logging.getLogger(noisy).setLevel(logging.ERROR)

"""Our log: one line an event, as `key=value` pairs (logfmt), on standard error."""

import logging

from logfmter import Logfmter


def set_up(level: str) -> None:
    """Log everything of this level and above; of others' own words only warnings, and of uvicorn's only errors: it
    warns of every request that is not HTTP, so that any stranger could fill the disk."""
    for number in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
        logging.addLevelName(number, logging.getLevelName(number).lower())
    handler = logging.StreamHandler()
    handler.setFormatter(
        Logfmter(keys=["ts", "level"], mapping={"ts": "asctime", "level": "levelname"}, datefmt="%Y-%m-%dT%H:%M:%S%z")
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for noisy in ("urllib3", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("uvicorn").setLevel(logging.ERROR)

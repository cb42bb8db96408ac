"""Our log: one line an event, as `key=value` pairs (logfmt), on standard error."""

import logging

from logfmter import Logfmter


def set_up(level: str) -> None:
    """Log everything of this level and above; uvicorn's own words only from warnings on."""
    for number in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
        logging.addLevelName(number, logging.getLevelName(number).lower())
    handler = logging.StreamHandler()
    handler.setFormatter(
        Logfmter(keys=["ts", "level"], mapping={"ts": "asctime", "level": "levelname"}, datefmt="%Y-%m-%dT%H:%M:%S%z")
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for noisy in ("uvicorn", "docker", "urllib3", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)

"""What is kept over a restart of the exporter: places in logs, cursors of audits. Small JSON files in a folder of our
own; without one, everything begins anew."""

import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

LARGEST_BYTES = 1 << 20
LONGEST_NUMBER = 20  # digits of one with 64 bits


class State:
    """One JSON object by the name of its owner. A folder that is missing, full or read-only costs the memory over a
    restart and nothing else: `problem` then says what is wrong, for `ctx.remark`."""

    def __init__(self, folder: Path | None, name: str) -> None:
        self._path = None if folder is None else folder / f"{name}.json"
        self.problem = ""

    @property
    def kept(self) -> bool:
        """Whether there is a folder to keep it in."""
        return self._path is not None

    def read(self) -> dict[str, object]:
        """What was kept; empty when there is nothing, or nothing readable."""
        if self._path is None:
            return {}
        try:
            with self._path.open("rb") as file:
                kept = file.read(LARGEST_BYTES)
            found = json.loads(kept, parse_int=_whole, parse_float=_finite, parse_constant=_finite)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            self.problem = f"cannot read {self._path}: {_reason(error)}"
            return {}
        return found if isinstance(found, dict) else {}

    def write(self, content: Mapping[str, object]) -> None:
        """Replace what is kept, all or nothing; the old content survives a full disk."""
        if self._path is None:
            return
        try:
            handle, made = tempfile.mkstemp(prefix=f".{self._path.name}.", dir=self._path.parent)
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    json.dump(content, file)
                    file.flush()
                    os.fsync(file.fileno())
                Path(made).replace(self._path)
            except BaseException:
                Path(made).unlink(missing_ok=True)
                raise
            self.problem = ""
        except OSError as error:
            self.problem = f"cannot write {self._path}: {_reason(error)}"


def _whole(text: str) -> int:
    """A number that we may have written; others would break what they are added to."""
    if len(text) > LONGEST_NUMBER:
        raise ValueError(text)
    return int(text)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _reason(error: Exception) -> str:
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else "it is not the JSON that we wrote"

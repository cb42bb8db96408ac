"""What is kept over a restart of the exporter: places in logs, cursors of audits. Small JSON files in a folder of our
own; without one, everything begins anew."""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

LARGEST_BYTES = 1 << 20


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
                found = json.loads(file.read(LARGEST_BYTES))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
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


def _reason(error: Exception) -> str:
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else "it is not the JSON that we wrote"

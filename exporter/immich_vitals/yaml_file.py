"""YAML that people write: read strictly, and whatever is wrong with it is told in one sentence."""

import re
from pathlib import Path

import yaml


class NotUsable(Exception):
    """A file is no YAML. `problem` follows its name in a sentence, `mend` says what to do."""

    def __init__(self, problem: str, mend: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.mend = mend


def read(path: Path) -> object:
    """What is in the file; None when it is empty. Raises `NotUsable`."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except (OSError, UnicodeError) as error:
        why = (error.strerror or type(error).__name__) if isinstance(error, OSError) else "it is not UTF-8 text"
        raise NotUsable(f"cannot be read: {why}", "name a file this user can read") from None
    except yaml.MarkedYAMLError as error:
        at = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        # A password without quotes may look like one of these.
        problem = re.sub(r"(alias|anchor|tag|handle) '[^']*'", r"\1 (not shown)", error.problem or "")
        raise NotUsable(f"is not valid YAML{at}: {problem}", "mend that line") from None
    except yaml.YAMLError:
        raise NotUsable("is not a text of YAML", "save it as plain UTF-8 text") from None
    except RecursionError:
        raise NotUsable("is nested too deeply", "mend it") from None


class _StrictLoader(yaml.SafeLoader):
    """YAML's safe loader, which also refuses a key given twice in place of keeping the last, a day that is in no
    calendar, and a text that no file, address or password can be."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key.value, str):
                continue
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} is given twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> object:
        try:
            found: object = super().construct_object(node, deep)
            str(found if isinstance(found, int) else "")  # Python has numbers that it does not write
        except (ValueError, OverflowError):
            problem = "what looks like a number or a date is none; put it into quotes"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None
        if isinstance(found, str) and ("\0" in found or not _is_text(found)):
            raise yaml.MarkedYAMLError(problem="there is a sign that no text has", problem_mark=node.start_mark)
        return found


def _is_text(found: str) -> bool:
    try:
        found.encode()
    except UnicodeEncodeError:
        return False
    return True

"""What a JSON answer has at a place where something of a kind ought to be; empty or None where it is something else."""


def dict_of(raw: object) -> dict[str, object]:
    return raw if isinstance(raw, dict) else {}


def list_of(raw: object) -> list[object]:
    return raw if isinstance(raw, list) else []


def text_of(raw: object) -> str:
    return raw if isinstance(raw, str) else ""


def whole_of(raw: object) -> int | None:
    """A whole number that a program in another language could have meant: JSON knows larger ones."""
    return raw if isinstance(raw, int) and not isinstance(raw, bool) and -(1 << 63) <= raw < 1 << 64 else None


def texts_of(raw: object) -> dict[str, str]:
    """The entries whose values are texts."""
    return {key: value for key, value in dict_of(raw).items() if isinstance(value, str)}

"""The landing page: how Immich is, what each collector says, and what to do where one says nothing."""

import time
from collections.abc import Iterable, Sequence
from html import escape

from immich_vitals import __version__
from immich_vitals.metrics import Sample
from immich_vitals.runner import Status
from immich_vitals.vitals import vital_signs

PROJECT = "https://github.com/immich-vitals/immich-vitals"

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --good: #1a7f37; --bad: #c62828; --off: #777; }
@media (prefers-color-scheme: dark) { :root { --good: #4ac26b; --bad: #ff7b72; --off: #999; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1 { font-size: 1.4rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p { margin: .3rem 0; } small, .quiet { color: var(--off); }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; vertical-align: top; padding: .45rem .8rem .45rem 0; border-top: 1px solid var(--line); }
th { font-weight: 600; white-space: nowrap; }
.ok { color: var(--good); } .failing, .partly { color: var(--bad); } .off, .waiting { color: var(--off); }
.state { font-weight: 600; white-space: nowrap; }
nav a { margin-right: 1rem; }
@media (max-width: 34rem) { td, th { display: block; border: 0; padding: .1rem 0; } tr { display: block;
  border-top: 1px solid var(--line); padding: .5rem 0; } }
"""


def render(statuses: Sequence[Status], samples: Iterable[Sample], telemetry_path: str) -> str:
    """The page as HTML. `samples` are those of the scrape that the statuses speak of."""
    signs = "".join(
        f'<tr><th scope="row">{escape(sign.name)}</th>'
        f"<td{'' if sign.known else ' class=quiet'}>{escape(sign.text)}</td></tr>"
        for sign in vital_signs(samples)
    )
    rows = "".join(_row(status) for status in statuses)
    path = escape(telemetry_path)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>immich-vitals</title><style>{_STYLE}</style></head><body>
<h1>immich-vitals</h1>
<p class="quiet">Vital signs for Immich, version {escape(__version__)}</p>
<p>{_summary(statuses)}</p>
<nav><a href="{path}">Metrics</a><a href="/healthz">Health</a><a href="/readyz">Readiness</a>
<a href="{PROJECT}">Documentation</a></nav>
<h2>Vital signs</h2><table>{signs}</table>
<h2>Collectors</h2><table>{rows}</table>
</body></html>
"""


def _summary(statuses: Sequence[Status]) -> str:
    enabled = [status for status in statuses if status.enabled]
    failing = [status.name for status in enabled if describe(status)[0] == "failing"]
    if failing:
        return f'<span class="failing">No answer from: {escape(", ".join(failing))}.</span> What to do is below.'
    partly = [status.name for status in enabled if describe(status)[0] == "partly"]
    if partly:
        return f'<span class="partly">Something to mend at: {escape(", ".join(partly))}.</span> See below.'
    off = [status.name for status in statuses if not status.enabled]
    return "Every collector answers." if not off else f"{len(enabled)} collectors answer, {len(off)} are off."


def _row(status: Status) -> str:
    state, says = describe(status)
    return (
        f'<tr><th scope="row">{escape(status.name)}</th><td class="state {state}">{state}</td>'
        f"<td>{escape(says)}<br><small>{escape(status.about)}{escape(_timing(status))}</small></td></tr>"
    )


def describe(status: Status) -> tuple[str, str]:
    """A collector's state (`ok`, `partly`, `failing`, `off` or `waiting`) and what there is to say, with the mend."""
    if not status.enabled:
        return "off", _sentence(status.disabled_because)
    if status.outcome is None:
        return "waiting", "Its first run is still under way."
    if status.outcome.ok:
        remarks, answered = status.outcome.remarks, f"Answered in {status.outcome.duration * 1000:.0f} ms."
        bad = [_with_mend(remark.message, remark.mend) for remark in remarks if not remark.optional]
        more = [_with_mend(remark.message, remark.mend, "For more") for remark in remarks if remark.optional]
        return ("partly", " ".join([*bad, *more])) if bad else ("ok", " ".join([answered, *more]))
    return "failing", _with_mend(status.outcome.message, status.outcome.mend)


def _with_mend(message: str, mend: str, why: str = "To mend it") -> str:
    return _sentence(message) + (" " + _sentence(f"{why}: {mend}") if mend else "")


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def _timing(status: Status) -> str:
    parts = []
    if status.interval is not None:
        parts.append(f"Refreshed every {_span(status.interval)}.")
    fresh = status.interval is None and status.outcome is not None and status.outcome.ok
    if status.last_success is not None and not fresh:
        parts.append(f"Last success {_span(max(0.0, time.time() - status.last_success))} ago.")
    return " ".join(["", *parts])


def _span(seconds: float) -> str:
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"

"""One line of a log: without what others wrote before it, and taken apart."""

import re
from dataclasses import dataclass

from immich_vitals.patterns import LONGEST_TEXT

COLOUR = re.compile(rb"(?:\x1b|#033|\\u001b|\\x1b|\^\[)\[[\d;]{0,20}m|\[\d{1,3}(?:;\d{1,3}){0,4}m")
_DAY = rb"(?:\d{4}[-/]\d\d[-/]\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d{1,9})?(?:Z| ?[+-]\d\d:?\d\d)?)"
# What only immich's own log, a stack or a field may follow, for where a prefix may be nearly anything.
_OURS = rb"(?=\[Nest\] \d| {4}at |[ ]{2,8}\w{3,16}: |\[\d\d/\d\d/\d\d \d|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)"
_PREFIX = re.compile(
    rb"(?:"
    rb"\s{0,4}[\w.\-/@]{1,80}\s{0,60}\|(?: |$)"  # docker compose, docker service
    rb"|\[[\w.\-/ ]{1,80}\]\s{0,40}\| ?"  # docker compose v1
    rb"|\[pod/[^\]\s]{1,200}\] "  # kubectl logs --prefix
    rb"|" + _DAY + rb"(?=[^\d,.:]|$)(?: \| |[ \t])?"
    rb"|\[" + _DAY + rb"\] (?!\[\d+\] \[)"
    rb"|(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) [ \d]\d \d\d:\d\d:\d\d [\w.\-]{1,80} "
    rb"[\w.\-/@]{1,80}(?:\[\d+\])?: "
    rb"|(?:\d\d:\d\d:\d\d|[\w.\-]{1,80}) [\w.\-/@]{1,80}\[\d+\]: "  # journald and syslog, the date cut or read
    rb"|[\w.\-]{1,80} (?:docker|podman|conmon|immich[\w.\-]*|postgres[\w.\-]*|redis[\w.\-]*|nginx): "
    rb"|<\d{1,3}>(?=[A-Z][a-z]{2} [ \d]\d |1? ?\d{4}-)"  # syslog's priority
    rb"|(?:stdout|stderr)(?: [FP])?[ \t]"
    rb"|[\w\-]{1,40}\[[\w\-]{1,40}\] \w{1,10} \[\w{1,10}\] ?"  # a platform's app[id] region [level]
    rb"|>{1,2} (?=\S|  )|\xe2\x94\x82 " + _OURS + rb"|"  # quoted; framed by a terminal
    rb"[\w.\-]{1,80} (?:\xe2\x80\xba )?(?:[\w.\-]{1,60} )?" + _OURS + rb"|"  # stern and other tails of pods
    rb"\w{3} \d{1,2}, \d{4} @ \d\d:\d\d:\d\d(?:\.\d{3})? "  # Kibana
    rb"|\d{1,2}/\d{1,2}/\d{4},? \d{1,2}:\d\d:\d\d(?: [AP]M)?,? " + _OURS + rb")"
)
_NEST = re.compile(
    rb"\s*(?:\[?Nest\] \d+ {1,3}- )?(?P<date>[^\[\]{}'\"]{6,40}?)\s+(?P<level>VERBOSE|DEBUG|LOG|WARN|ERROR|FATAL)\s+"
    rb"\[(?:(?:Api|Microservices|Maintenance|ImmichAdmin):)?(?P<context>\{.{0,2000}?\}\]|.*?\](?= |$)|.*$) ?"
)
_JSON_LOG = re.compile(rb'^\s*\{"log":"(?P<text>.*?)(?:\\n)?"(?:,"stream":|,"time":|,"attrs":|\}|$)')
_ESCAPE = re.compile(rb'\\(["\\/nrt]|u00[0-7][0-9a-fA-F])')
_ESCAPED = {b'"': b'"', b"\\": b"\\", b"/": b"/", b"n": b"\n", b"r": b"", b"t": b"\t"}
_JSON_LEVEL = re.compile(rb'"level": ?"(?P<level>\w+)"')
_JSON_TEXT = re.compile(rb'"message": ?"(?P<text>(?:[^"\\]|\\.)*)')


def _unescape(match: re.Match[bytes]) -> bytes:
    code = match[1]
    return _ESCAPED.get(code) or (bytes([int(code[1:], 16)]) if code[:1] == b"u" else b"")


def body(line: bytes) -> bytes:
    """The line as its program wrote it: without colours and without what compose, journald, syslog or a shipper put
    before it."""
    if (wrapped := _JSON_LOG.match(line)) is not None:
        line = _ESCAPE.sub(_unescape, wrapped["text"])
    if b"m" in line and b"[" in line:
        line = COLOUR.sub(b"", line)
    position = 0
    for _ in range(6):
        prefix = _PREFIX.match(line, position)
        if prefix is None or prefix.end() == position:
            break
        position = prefix.end()
    return line[position : position + LONGEST_TEXT].rstrip()


_INTRO = re.compile(
    rb"(?:Unknown error|Unable to send file|Error uploading file"
    rb"|[Uu]nable to run job handler \([^)]{0,80}\)|Unable to run job handler|Error reading exif data \([^)]{0,300}\)"
    rb"|\w+ worker error|Database [Bb]ackup [Ff]ailure|(?:Kysely m|M)igrations failed(?: with error)?"
    rb"|Migration \"[^\"]{0,120}\" failed, error|\[?cause\]?|error|message|Error occurred during transcoding"
    rb"|(?:driver|\w*)?(?:[eE]rror|Exception)(?: \[\w+\])?):? ?['\"`]?"
)
STACK = re.compile(rb", stack: .*", re.DOTALL)
BARE = re.compile(rb"(?:\[?cause\]?: )?(?:[A-Z]\w*)?(?:[Ee]rror|Exception)(?: \[\w+\])?: |\w+ worker error: ")
_AGAIN = re.compile(
    rb"Unknown error: |(?:[A-Z]\w*)?Error: |Unable to send file: |(?:[A-Z]\w*)?Error$|(?:Kysely m|M)igrations failed: "
    rb"|Unable to run job handler \((?:\w+/)?(?:DatabaseBackup|database-backup)\): "
)
_OUTPUT = re.compile(
    rb"\[[^@\]]{1,60} @ 0x|/\S{1,300}: |pg_dump(?:all)?: (?:detail|hint)|system error: |\w{0,12}[Vv]ips\w*: "
    rb"|Conversion failed|av_\w+\(\)|Error (?:writing|opening|while|submitting|initializing) "
)
_POSTGRES = re.compile(rb"(?:^|[\s>])(?:LOG|ERROR|FATAL|PANIC|WARNING): {1,2}")
_REDIS = re.compile(rb"\d+:[A-Z] \d{1,2} \w{3} \d{4} [\d:.]+ [#*.-] ")
_GUNICORN = re.compile(rb"\[[^\]]{8,40}\] (?:\[\d+\] )?\[?[A-Z]+\]?\s+")
NEVER = re.compile(
    rb"\s*(?:at (?:async |new |Object\.|process\.|file:|[\w$.#<>\[\] ]+\()|\xe2\x94\x82|\xe2\x95[\xad\xb0]"
    rb"|throw |raise \w|\^|Object:|(?:detail|hint|where|code|errno|syscall|path|dest|address"
    rb"|port|routine|file|line|query|sql|stack|internalQuery"
    rb"|parameters|params|args|command|name|severity|severity_local|hostname|cmd|killed|signal): "
    rb"|STATEMENT: |\xe2\x9d\xb1|File \"/|Node\.js v\d)"
)
LAST_FRAME = re.compile(rb"\s*at [^\]]{1,1000}?:\d+:\d+\)?\] (?=\S)")
FRAME = re.compile(rb"\S:\d{1,7}:\d{1,7}\)?\]?$")
BOX = b"\xe2\x94\x82"
STATEMENT = re.compile(
    # In JSON it stands beside the message, which says what became of that process.
    rb"(?:STATEMENT|QUERY):  |(?<!\x22:\x22)(?<!\x22: \x22)Failed process was running: "
    rb"|LOG:  (?:duration|statement|execute|AUDIT)[: ]"
)
RICH = re.compile(rb"\[\d\d/\d\d/\d\d \d\d:\d\d:\d\d\]")
_CID = re.compile(rb"~([a-z0-9]{8})\]$")
_JOB = re.compile(rb'"id": ?"([0-9a-f-]{36})"')
_DETAIL = re.compile(rb"(?:DETAIL|HINT|CONTEXT|QUERY|LOCATION):  ?")


@dataclass(slots=True)
class Line:
    """A line taken apart. `head`: it begins a record; `again`: it may tell an error a second time; `output`: a program
    that Immich ran wrote it; `said`: the text without what differs each time; `when`: process and second."""

    text: bytes
    said: bytes = b""
    head: bool = False
    again: bool = False
    output: bool = False
    when: bytes | None = None
    detail: bool = False
    identity: bytes | None = None
    quiet: bool = False
    context: bytes = b""


def _is_quiet(level: bytes, message: bytes) -> bool:
    """Whether the server says of a line itself that it tells of no trouble."""
    return level in (b"debug", b"verbose") or (level == b"log" and b"unhealthy" not in message)


def taken_apart(text: bytes, component: str) -> Line:
    """What a line is, without its prefix."""
    if (nest := _NEST.match(text)) is not None:
        message = text[nest.end() :]
        context = nest["context"]
        cid = _CID.search(context)
        job = _JOB.search(context)
        return Line(
            text=message if message else text,
            said=b"" if message else _CID.sub(b"", context),
            head=True,
            again=_AGAIN.match(message) is not None,
            identity=cid[1] if cid else job[1] if job else None,
            quiet=_is_quiet(nest["level"].lower(), message),
            context=_CID.sub(b"", context).rstrip(b"]"),
            when=text[: nest.start("level")].strip(),
        )
    if text.startswith(b"{") and (said := _JSON_TEXT.search(text)) is not None:
        level = _JSON_LEVEL.search(text)
        message = _ESCAPE.sub(_unescape, said["text"])
        job = _JOB.search(text.replace(b"\\", b""))
        return Line(
            text=text if component == "proxy" else message.split(b"\n", 1)[0],
            head=True,
            again=_AGAIN.match(message) is not None,
            identity=job[1] if job else None,
            quiet=component != "proxy" and level is not None and _is_quiet(level["level"].lower(), message),
        )
    if component == "database" and (level := _POSTGRES.search(text[:200])) is not None:
        return Line(text=text, said=text[level.end() :], head=True)
    if component == "redis" and (sign := _REDIS.match(text)) is not None:
        return Line(text=text, said=text[sign.end() :], head=True)
    if component == "machine_learning" and (level := _GUNICORN.match(text)) is not None:
        return Line(text=text, said=text[level.end() :], head=True)
    stripped = text.lstrip()
    if component == "proxy":
        return Line(text=stripped, head=True)  # each line tells of a request of its own
    return Line(
        text=stripped,
        again=BARE.match(stripped) is not None,
        output=component in ("server", "microservices") and _OUTPUT.match(stripped) is not None,
        detail=component in ("server", "microservices", "database") and _DETAIL.search(text[:120]) is not None,
    )


def core(text: bytes) -> bytes:
    """The words that are the same each time one error is told: without the introductions that programs put before."""
    text = STACK.sub(b"", text).split(b" script: ", 1)[0].strip()
    for _ in range(6):
        shorter = _INTRO.sub(b"", text, count=1) if _INTRO.match(text) else text
        if shorter == text:
            break
        text = shorter.strip()
    return text.strip(b"'\"`,. \t")[:300]

"""Access: Immich as its users meet it, beside its proxy and through it."""

from grafana.source import shared
from grafana.source.kit import (
    BAD,
    NOTE,
    PLAIN,
    SOON,
    WELL,
    Board,
    Query,
    State,
    Word,
    limit,
    lines,
    number,
    timeline,
)

WORKS = (State(1, "works", WELL), State(0, "fails", BAD))
# By the first digit; 101 is the websocket that opened.
STATUS = (
    State(1, "1xx: opened", WELL),
    State(2, "2xx: well", WELL),
    State(3, "3xx: led elsewhere", NOTE),
    State(4, "4xx: refused", SOON),
    State(5, "5xx: an error", BAD),
)
# ImmichCertificateExpiring beside its limit: what part of the certificate's life must be left, and when it is critical.
LEFT_RATIO = 0.2
LEFT_CRITICAL_RATIO = 0.05
LEFT_CRITICAL_SECONDS = 3 * 86400
CERTIFICATE = (
    State(3, "good", WELL),
    State(2, "expires soon", SOON),
    State(1, "expires in days", BAD),
    State(0, "not trusted", BAD),
)
# ImmichUploadLimitTooLow: more refusals than this in an hour, where the limit itself is not known. The most that the
# probe asks for stands for no limit.
REFUSALS_IN_AN_HOUR = 5
LIMITED = "min(immich_vitals_probe_upload_limit_bytes{@}) < 50000 * 1024^2"
# When a value that is not there is known to be none.
TRIED = 'immich_vitals_collector_success{@, collector="probe"} == 1'
ANSWERED = 'min(immich_vitals_probe_success{@, probe="ping", route=~"$route"}) == 1'
NO_PROXY = """
immich_vitals_probe_success{@, probe="ping", route="direct"}
unless on () immich_vitals_probe_success{@, probe="ping", route="external"}
"""
MAINTENANCE = Word("in maintenance", "immich_vitals_probe_maintenance_mode{@} == 1", NOTE)
NO_PROXY_LOG = Word("no log of a proxy", 'immich_vitals_collector_enabled{@, collector="log"}')


def certificates() -> str:
    """One number per route, as `CERTIFICATE` has them."""
    expiry = 'max by (route) (immich_vitals_probe_certificate_expiry_timestamp_seconds{@, route=~"$route"})'
    start = 'max by (route) (immich_vitals_probe_certificate_start_timestamp_seconds{@, route=~"$route"})'
    trusted = 'min by (route) (immich_vitals_probe_certificate_trusted{@, route=~"$route"})'
    left = f"({expiry} - time())"
    ratio = f"({left} / ({expiry} - {start}))"
    soon = f"({left} < bool {limit('certificate_expiring_seconds'):.0f}) * ({ratio} < bool {LEFT_RATIO})"
    days = f"({left} < bool {LEFT_CRITICAL_SECONDS}) * ({ratio} < bool {LEFT_CRITICAL_RATIO})"
    # Beside the proxy a certificate of one's own is nobody's concern.
    of_concern = f'({trusted} unless on (route) immich_vitals_probe_certificate_trusted{{@, route="direct"}} == 0)'
    return f"{of_concern} * (3 - {soon} - {days})"


def board() -> Board:
    made = Board(
        "access",
        "Does Immich answer, beside its proxy (direct) and through it (external)? Red only where it says external: the"
        " proxy, its certificate or the name.",
        filters={
            "route": "immich_vitals_probe_success",
            "family": "immich_vitals_probe_address_family_success",
        },
    )
    made.row("Does it answer").add(
        timeline(
            "Probes",
            Query('min by (probe, route) (immich_vitals_probe_success{@, route=~"$route"})', "{{probe}} {{route}}"),
            WORKS,
            "What people do with Immich, tried each minute. All red: the server; external alone: what is before it;"
            " image alone: the photos. Alerts: ImmichServerUnreachable, ImmichProxyUnreachable,"
            " ImmichImageLoadFailing, ImmichWebsocketBroken, ImmichMachineLearningUnreachable.",
            h=8,
        ),
    )
    made.row("Address and certificate").add(
        number(
            "Address families",
            Query(
                """
                min by (route, family) (
                  immich_vitals_probe_address_family_success{@, route=~"$route", family=~"$family"}
                )
                """,
                "{{route}} {{family}}",
            ),
            "none",
            "Whether Immich answers by IPv4 and by IPv6, for a name that has both. One fails: some people wait or are"
            " cut off. Alert: ImmichProxyUnreachable.",
            states=WORKS,
            names=True,
            words=(Word("only one in use", ANSWERED),),
            w=6,
            h=6,
        ),
        number(
            "Certificate",
            Query(certificates(), "{{route}}"),
            "none",
            "Not trusted: apps refuse it. Expires soon: its renewal has failed for days. A certificate of one's own"
            " beside the proxy is no fault and not shown. Alerts: ImmichCertificateInvalid, ImmichCertificateExpiring.",
            states=CERTIFICATE,
            names=True,
            words=(Word("no HTTPS", ANSWERED),),
            w=6,
            h=6,
        ),
        number(
            "Certificate ends in",
            Query(
                """
                min by (route) (immich_vitals_probe_certificate_expiry_timestamp_seconds{@, route=~"$route"}) - time()
                """,
                "{{route}}",
            ),
            "s",
            "How long the certificate chain is still good. Bad: less at each look and never more, so nothing renews"
            " it. Alert: ImmichCertificateExpiring.",
            names=True,
            words=(Word("no HTTPS", ANSWERED),),
            w=6,
            h=6,
        ),
        number(
            "HTTP to HTTPS",
            Query("min(immich_vitals_probe_redirects_to_https{@})"),
            "none",
            "Whether http:// leads to https://. Where it does not, passwords may travel in the clear; at home that may"
            " be meant. No alert speaks of it.",
            states=(State(1, "leads there", WELL), State(0, "does not", NOTE)),
            words=(Word("no answer", ANSWERED),),
            w=3,
            h=6,
        ),
        number(
            "Maintenance",
            Query("max(immich_vitals_probe_maintenance_mode{@})"),
            "none",
            "Whether Immich is in maintenance mode: then nobody gets in, and neither photos nor websocket are tried."
            " No alert speaks of it.",
            states=(State(0, "off", WELL), State(1, "on", NOTE)),
            w=3,
            h=6,
        ),
    )
    made.row("Proxy").add(
        shared.first_byte(', route=~"$route"', w=10, h=8),
        lines(
            "Time of whole probes",
            Query(
                'max by (probe, route) (immich_vitals_probe_duration_seconds{@, route=~"$route"})',
                "{{probe}} {{route}}",
            ),
            "s",
            "How long each probe takes, with connection, TLS and, for images, three photos. Bad: many times the usual."
            " Alert: ImmichProxySlow, which reads only the first byte.",
            w=10,
        ),
        number(
            "First byte outside",
            Query('max(immich_vitals_probe_first_byte_seconds{@, route="external"})'),
            "s",
            "The same now, through the proxy. Orange: people say that it hangs. Alert: ImmichProxySlow, while the"
            " server itself is quick.",
            given=((WELL, None), (SOON, limit("proxy_first_byte_seconds"))),
            words=(Word("no proxy known", NO_PROXY),),
            h=8,
        ),
        number(
            "Largest upload",
            Query('min by (route) (immich_vitals_probe_upload_limit_bytes{@, route=~"$route"})', "{{route}}"),
            "bytes",
            "The largest upload that is let through, asked each hour; 49 GiB is as good as no limit. Orange: long"
            " videos from phones fail. Alert: ImmichUploadLimitTooLow.",
            given=((SOON, None), (WELL, limit("upload_limit_bytes"))),
            names=True,
            words=(Word("not asked yet", ANSWERED),),
            w=6,
            h=5,
        ),
        number(
            "Refused in an hour",
            # Where there is a limit, the probe's own questions are among the refusals.
            Query(
                f"""
                sum(increase(
                  immich_vitals_log_matches_total{{@, component="proxy", signature="request_too_large"}}[1h]
                ))
                unless on () {LIMITED}
                """,
            ),
            "short",
            "Uploads that the proxy refused in the last hour for their size, by its log, where it tells no limit when"
            " asked. Bad: more than a few. Alert: ImmichUploadLimitTooLow.",
            given=((WELL, None), (SOON, REFUSALS_IN_AN_HOUR + 1)),
            decimals=0,
            words=(Word("the probe tells", LIMITED), NO_PROXY_LOG),
            w=6,
            h=5,
        ),
        number(
            "What the proxy's log says",
            Query(
                """
                sum by (signature) (increase(
                  immich_vitals_log_matches_total{@, component="proxy", signature=~"upstream_error|tls_error"}[$__range]
                ))
                """,
                "{{signature}}",
            ),
            "short",
            "How often in the time shown it could not reach the server, or had trouble with TLS. Bad: many while the"
            " direct probes are well. Alert: ImmichProxyUnreachable.",
            names=True,
            decimals=0,
            words=(NO_PROXY_LOG,),
            w=12,
            h=5,
        ),
    )
    made.row("Server").add(
        timeline(
            "HTTP status over time",
            Query(
                'floor(max by (probe, route) (immich_vitals_probe_http_status{@, route=~"$route"}) / 100)',
                "{{probe}} {{route}}",
            ),
            STATUS,
            "What kind of answer came. 502 to 504 are the proxy's words for a server that does not answer; where"
            " nothing is drawn there was no answer at all. Alerts: ImmichServerUnreachable, ImmichProxyUnreachable.",
            w=16,
            h=9,
        ),
        number(
            "HTTP status now",
            Query(
                'max by (probe, route) (immich_vitals_probe_http_status{@, route=~"$route"})',
                "{{probe}} {{route}}",
            ),
            "none",
            "The last answer of each probe: 101 of a websocket, 200 or 206 of all others. Bad: 400 and more. Alerts:"
            " ImmichServerUnreachable, ImmichImageLoadFailing.",
            given=((PLAIN, None), (SOON, 400), (BAD, 500)),
            names=True,
            unknown="no answer",
            w=8,
            h=9,
        ),
    )
    made.row("Photos and live updates").add(
        number(
            "Photos load",
            Query('min by (route) (immich_vitals_probe_success{@, probe="image", route=~"$route"})', "{{route}}"),
            "none",
            "A photo that exists loads as thumbnail, preview and original; it takes an API key. Fails while the ping"
            " works: disk, permissions or database. Alert: ImmichImageLoadFailing.",
            states=WORKS,
            names=True,
            words=(MAINTENANCE, Word("not tried", TRIED)),
            w=8,
            h=5,
        ),
        number(
            "Time to load photos",
            Query(
                'max by (route) (immich_vitals_probe_duration_seconds{@, probe="image", route=~"$route"})',
                "{{route}}",
            ),
            "s",
            "How long the probe's photos took. Bad: seconds, while `Time to the first byte` is short: a slow disk, or"
            " a slow line. No alert speaks of it.",
            names=True,
            words=(MAINTENANCE, Word("not tried", TRIED)),
            w=8,
            h=5,
        ),
        number(
            "Websocket",
            Query(
                'min by (route) (immich_vitals_probe_success{@, probe="websocket", route=~"$route"})',
                "{{route}}",
            ),
            "none",
            "The connection by which pages hear of news opens. External alone fails: the proxy does not pass the"
            " headers of websockets on. Alert: ImmichWebsocketBroken.",
            states=WORKS,
            names=True,
            words=(MAINTENANCE,),
            w=8,
            h=5,
        ),
    )
    made.row("Machine learning").add(
        number(
            "Machine learning now",
            Query('min(immich_vitals_probe_success{@, probe="machine_learning", route=~"$route"})'),
            "none",
            "Its service answers as Immich's does. Fails: search, faces and text wait; photos are shown as before."
            " Alert: ImmichMachineLearningUnreachable.",
            states=WORKS,
            words=(Word("switched off", TRIED),),
            w=8,
            h=5,
        ),
        number(
            "Its time to answer",
            Query('max(immich_vitals_probe_duration_seconds{@, probe="machine_learning", route=~"$route"})'),
            "s",
            "How long machine learning takes to say that it is there. Bad: seconds for hours; it is overloaded. Alert:"
            " ImmichMachineLearningUnreachable, once it takes too long.",
            words=(Word("switched off", TRIED),),
            w=8,
            h=5,
        ),
        number(
            "Missed by the server",
            Query(
                """
                sum(increase(immich_vitals_log_matches_total{@,
                  component=~"server|microservices", signature="ml_unreachable"
                }[$__range]))
                """,
            ),
            "short",
            "How often the server could not reach machine learning in the time shown, by its log. Many while the probe"
            " works: the server has another address for it. Alert: ImmichLogErrors.",
            decimals=0,
            words=(Word("no log is followed", 'immich_vitals_collector_enabled{@, collector="log"} == 0'),),
            w=8,
            h=5,
        ),
    )
    return made

"""What the dashboards are made of: one look for each kind of panel, and one way to ask Prometheus.

A query is written with `@` where the labels of the target belong: `up{@}` asks for what the variables of the dashboard
select. Everything else is the builders of grafana-foundation-sdk, in the version of the oldest Grafana we promise.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self, TypeAlias

from grafana_foundation_sdk.builders import bargauge, common, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.builders import prometheus as ask
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as shared
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models import prometheus as asked

from grafana.source import rulebook

TARGET = 'job=~"$job", cluster=~"$cluster", instance=~"$instance"'
DATASOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
RUNBOOKS = "https://github.com/immich-vitals/immich-vitals/blob/main/docs/runbooks"
_LEGEND = re.compile(r"{{\s*(\w+)\s*}}")
BOARDS: Mapping[str, str] = {
    "triage": "Triage",
    "services": "Services and host",
    "storage": "Storage and backups",
    "postgres": "PostgreSQL",
    "queues": "Queues and library",
    "access": "Access",
}
KNOWN = "immich_vitals_build_info"
"""The metric that every exporter has, for the lists of variables."""

# Colour means something or there is none: green is well, blue is worth knowing, orange soon hurts, red hurts.
WELL, NOTE, SOON, BAD, UNKNOWN = "green", "blue", "orange", "red", "#8e8e8e"
PLAIN = "text"
CLEAR = "transparent"


@dataclass(frozen=True, slots=True)
class Query:
    """One question to Prometheus. `legend` names its series; `table` asks for now only, one line per series."""

    expr: str
    legend: str = ""
    table: bool = False

    def builder(self, ref: str, *, now: bool) -> ask.Dataquery:
        built = ask.Dataquery().ref_id(ref).expr(expanded(self.expr)).legend_format(self.legend or "__auto")
        built = built.datasource(DATASOURCE).editor_mode(asked.QueryEditorMode.CODE)
        if self.table:
            return built.instant().format(asked.PromQueryFormat.TABLE)
        return built.instant() if now else built.range()


@dataclass(frozen=True, slots=True)
class State:
    """What one value of a panel of states is called, and its colour."""

    value: float
    text: str
    color: str


Queries: TypeAlias = Query | Sequence[Query]
Levels: TypeAlias = Sequence[tuple[str, float | None]]
"""Colours from below: `((WELL, None), (SOON, 0.8))` is green below 0.8 and orange from there."""


@dataclass(frozen=True, slots=True)
class Word:
    """What to say where there is no value, as long as `holds` gives something: that it is off, or not yet known."""

    text: str
    holds: str
    color: str = UNKNOWN


YES_NO = (State(1, "yes", WELL), State(0, "no", BAD))


class Panel(Protocol):
    """Any of the SDK's builders of panels."""

    def build(self) -> model.Panel: ...


def expanded(expr: str) -> str:
    """The expression with the labels of the target in place of `@`."""
    return " ".join(expr.split()).replace("{@", "{" + TARGET)


def levels(given: Levels) -> build.ThresholdsConfig:
    steps = [model.Threshold(value=value, color=color) for color, value in given]
    return build.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps)


def lines(
    title: str,
    queries: Queries,
    unit: str,
    about: str,
    *,
    given: Levels = (),
    w: int = 12,
    h: int = 8,
    stacked: bool = False,
    bars: bool = False,
    least: float | None = 0.0,
    most: float | None = None,
    unknown: str = "",
) -> timeseries.Panel:
    """Lines over time. Gaps stay gaps: nothing was known then.

    `given` draws a dashed line at each level. With a colour from below (`((CLEAR, None), (SOON, 2))`, where little is
    bad `((BAD, None), (CLEAR, 0.05))`) what lies beyond is tinted, too: for levels that alone decide.
    `unknown` is said where there is no line at all.
    """
    panel: timeseries.Panel = _basic(timeseries.Panel(), title, queries, unit, about, w, h)
    panel = (
        panel.line_width(1)
        .fill_opacity(60 if bars else 15 if stacked else 5)
        .draw_style(shared.GraphDrawStyle.BARS if bars else shared.GraphDrawStyle.LINE)
        .show_points(shared.VisibilityMode.NEVER)
        .span_nulls(False)
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(shared.LegendDisplayMode.LIST)
            .placement(shared.LegendPlacement.BOTTOM)
        )
        .tooltip(common.VizTooltipOptions().mode(shared.TooltipDisplayMode.MULTI).sort(shared.SortOrder.DESCENDING))
        .color_scheme(build.FieldColor().mode(model.FieldColorModeId.PALETTE_CLASSIC))
    )
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(shared.StackingMode.NORMAL))
    if given:
        tinted = given[0][1] is None
        modes = shared.GraphTresholdsStyleMode
        panel = panel.thresholds(levels(given if tinted else [(PLAIN, None), *given]))
        panel = panel.thresholds_style(
            common.GraphThresholdsStyleConfig().mode(modes.DASHED_AND_AREA if tinted else modes.DASHED)
        )
    if least is not None:
        panel = panel.min(least)
    if unknown:
        panel = panel.no_value(unknown)
    return panel if most is None else panel.max(most)


def number(
    title: str,
    queries: Queries,
    unit: str,
    about: str,
    *,
    given: Levels = ((PLAIN, None),),
    states: Sequence[State] = (),
    w: int = 4,
    h: int = 4,
    names: bool = False,
    decimals: int | None = None,
    unknown: str = "unknown",
    words: Sequence[Word] = (),
) -> stat.Panel:
    """What is true now, not what was last known, in large letters; `names` shows the name of each series beside it.

    Where there is no value the first of `words` that holds says why; the values themselves are then never negative.
    """
    asked_for = [queries] if isinstance(queries, Query) else queries
    queries = [replace(query, expr=or_words(query.expr, words)) for query in asked_for]
    if words:
        queries = [replace(query, expr=dashed(query.expr, _LEGEND.findall(query.legend))) for query in queries]
    panel: stat.Panel = _basic(stat.Panel(), title, queries, unit, about, w, h, now=True)
    panel = (
        panel.reduce_options(common.ReduceDataOptions().calcs(["last"]).values(False))
        .graph_mode(shared.BigValueGraphMode.NONE)
        .color_mode(shared.BigValueColorMode.BACKGROUND if states else shared.BigValueColorMode.VALUE)
        .text_mode(shared.BigValueTextMode.VALUE_AND_NAME if names else shared.BigValueTextMode.VALUE)
        .orientation(shared.VizOrientation.HORIZONTAL if names else shared.VizOrientation.AUTO)
        .color_scheme(build.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
        .thresholds(levels(given if not states else ((UNKNOWN, None),)))
        .no_value(unknown)
    )
    if states or words:
        said = [State(-place, word.text, word.color) for place, word in enumerate(words, start=1)]
        panel = panel.mappings(mappings([*states, *said]))
    return panel if decimals is None else panel.decimals(decimals)


def timeline(
    title: str,
    queries: Queries,
    states: Sequence[State],
    about: str,
    *,
    w: int = 24,
    h: int = 6,
    row_height: float = 0.8,
) -> statetimeline.Panel:
    """States over time, one line per series. Where nothing is known, nothing is drawn."""
    panel: statetimeline.Panel = _basic(statetimeline.Panel(), title, queries, "none", about, w, h)
    return (
        panel.mappings(mappings(states))
        # With a scheme of thresholds Grafana would merge values by them and forget the words and colours of the states.
        .color_scheme(build.FieldColor().mode(model.FieldColorModeId.FIXED).fixed_color(UNKNOWN))
        .merge_values(True)
        .show_value(shared.VisibilityMode.NEVER)
        .row_height(row_height)
        .fill_opacity(80)
        .line_width(0)
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(shared.LegendDisplayMode.LIST)
            .placement(shared.LegendPlacement.BOTTOM)
        )
        .tooltip(common.VizTooltipOptions().mode(shared.TooltipDisplayMode.SINGLE).sort(shared.SortOrder.NONE))
        .no_value("unknown")
    )


def bars(
    title: str,
    queries: Queries,
    unit: str,
    about: str,
    given: Levels,
    *,
    w: int = 12,
    h: int = 8,
    least: float = 0.0,
    most: float | None = None,
) -> bargauge.Panel:
    """How much of each there is now, as bars with their names."""
    panel: bargauge.Panel = _basic(bargauge.Panel(), title, queries, unit, about, w, h, now=True)
    panel = (
        panel.reduce_options(common.ReduceDataOptions().calcs(["last"]).values(False))
        .display_mode(shared.BarGaugeDisplayMode.BASIC)
        .value_mode(shared.BarGaugeValueMode.TEXT)
        .orientation(shared.VizOrientation.HORIZONTAL)
        .show_unfilled(True)
        .color_scheme(build.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
        .thresholds(levels(given))
        .min(least)
        .no_value("unknown")
    )
    return panel if most is None else panel.max(most)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: the label, or `Value`, it shows, its heading, and how."""

    name: str
    title: str
    unit: str = ""
    states: Sequence[State] = ()
    texts: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Words and colours for texts: `{"critical": ("critical", BAD)}`."""
    given: Levels = ()
    url: str = ""
    url_title: str = ""
    width: int | None = None


def rows(
    title: str,
    query: Query | Sequence[Query],
    columns: Sequence[Column],
    about: str,
    *,
    sort: str = "",
    descending: bool = False,
    w: int = 12,
    h: int = 8,
    empty: str = "none",
) -> table.Panel:
    """A table with these columns, in this order; sorted by the label or `Value` named in `sort`.

    Of several queries the values are `Value #A`, `Value #B`, joined by the labels they share.
    """
    panel: table.Panel = _basic(table.Panel(), title, query, "none", about, w, h).no_value(empty)
    panel = panel.cell_height(shared.TableCellHeight.SM).show_header(True)
    panel = panel.thresholds(levels(((PLAIN, None),)))
    if isinstance(query, Sequence):
        panel = panel.with_transformation(model.DataTransformerConfig(id_val="merge", options={}))
    if sort:
        by = {"fields": {}, "sort": [{"field": sort, "desc": descending}]}
        panel = panel.with_transformation(model.DataTransformerConfig(id_val="sortBy", options=by))
    wanted = {column.name: place for place, column in enumerate(columns)}
    keep = {"include": {"names": list(wanted)}}
    panel = panel.with_transformation(model.DataTransformerConfig(id_val="filterFieldsByName", options=keep))
    order = {
        "excludeByName": {},
        "indexByName": wanted,
        "renameByName": {column.name: column.title for column in columns},
    }
    panel = panel.with_transformation(model.DataTransformerConfig(id_val="organize", options=order))
    for column in columns:
        panel = panel.override_by_name(column.title, list(_properties(column)))
    return panel


def _properties(column: Column) -> Iterable[model.DynamicConfigValue]:
    if column.unit:
        yield model.DynamicConfigValue(id_val="unit", value=column.unit)
    if column.states or column.texts:
        yield model.DynamicConfigValue(id_val="mappings", value=[*mappings(column.states), *_words(column.texts)])
    if column.states or any(color != PLAIN for _, color in column.texts.values()):
        yield model.DynamicConfigValue(id_val="custom.cellOptions", value={"type": "color-background"})
        yield model.DynamicConfigValue(id_val="thresholds", value=levels((("transparent", None),)).build())
    if column.given:
        yield model.DynamicConfigValue(id_val="thresholds", value=levels(column.given).build())
        yield model.DynamicConfigValue(id_val="custom.cellOptions", value={"type": "color-text"})
    if column.url:
        link = {"title": column.url_title, "url": column.url, "targetBlank": False}
        yield model.DynamicConfigValue(id_val="links", value=[link])
    if column.width is not None:
        yield model.DynamicConfigValue(id_val="custom.width", value=column.width)


def mappings(states: Sequence[State]) -> list[model.ValueMapping]:
    """Values as words, and nothing known as just that."""
    if not states:
        return []
    known = {
        f"{state.value:g}": model.ValueMappingResult(text=state.text, color=state.color, index=place)
        for place, state in enumerate(states)
    }
    nothing = model.DashboardSpecialValueMapOptions(
        match=model.SpecialValueMatch.NULL_AND_NAN,
        result=model.ValueMappingResult(text="unknown", color=UNKNOWN, index=len(states)),
    )
    return [model.ValueMap(options=known), model.SpecialValueMap(options=nothing)]


def _words(texts: Mapping[str, tuple[str, str]]) -> list[model.ValueMapping]:
    if not texts:
        return []
    return [
        model.ValueMap(
            options={
                word: model.ValueMappingResult(text=text, color=None if color == PLAIN else color, index=place)
                for place, (word, (text, color)) in enumerate(texts.items())
            }
        )
    ]


def or_none(expr: str, label: str) -> str:
    """The expression, or where it gives nothing one line with `none` in the label; nothing while nobody watches."""
    return f'({expr}) or label_replace(0 * max({KNOWN}{{@}}), "{label}", "none", "", "") unless on () ({expr})'


def or_words(expr: str, words: Sequence[Word], label: str = "") -> str:
    """The expression; where it gives nothing, -1 if the first word holds, else -2 if the second does, and so on.

    For tables the text of the word stands in `label`, and `spoken` gives the column its colours.
    """
    for place, word in enumerate(words, start=1):
        said = f"(0 * max({word.holds}) - {place})"
        expr = f"({expr}) or on () " + (f'label_replace({said}, "{label}", "{word.text}", "", "")' if label else said)
    return expr


def blank(words: Sequence[Word]) -> list[State]:
    """The values of lines that are only words."""
    return [State(-place, "-", "transparent") for place in range(1, len(words) + 1)]


def spoken(words: Sequence[Word]) -> dict[str, tuple[str, str]]:
    """The texts of a column that `or_words` fills."""
    return {word.text: (word.text, word.color) for word in words}


def dashed(expr: str, labels: Iterable[str]) -> str:
    """The expression; what is without one of the labels has a dash there, so that a legend has something to show."""
    for label in labels:
        expr = f'label_replace({expr}, "{label}", "-", "{label}", "")'
    return expr


def happened(counter: str, *by: str) -> str:
    """How often each kind happened, over time: of those that did in the time shown, or `none` where nothing did."""
    labels = ", ".join(by)
    whole = f"sum by ({labels}) (increase({counter}[$__range] @ end())) > 0.5"
    some = f"sum by ({labels}) (increase({counter}[$__rate_interval])) and {whole}"
    return dashed(or_none(some, by[0]), by[1:])


def link_to(board: str, title: str = "") -> build.DashboardLink:
    """A link to another of our dashboards, with what is selected here and the time."""
    return (
        build.DashboardLink(title or BOARDS[board])
        .type(model.DashboardLinkType.LINK)
        .url(f"/d/immich-vitals-{board}")
        .include_vars(True)
        .keep_time(True)
    )


def _basic(
    panel: Any, title: str, queries: Queries, unit: str, about: str, w: int, h: int, *, now: bool = False
) -> Any:
    # Any: the builders of the SDK have no common class, and each returns its own.
    panel = panel.title(title).description(about).datasource(DATASOURCE).span(w).height(h).unit(unit)
    for place, query in enumerate([queries] if isinstance(queries, Query) else queries):
        panel = panel.with_target(query.builder(chr(ord("A") + place), now=now))
    return panel


@dataclass(frozen=True, slots=True)
class Event:
    """Moments that every dashboard marks: the expression gives them in milliseconds."""

    name: str
    expr: str
    title: str
    text: str
    color: str


EVENTS = (
    Event(
        "Starts of containers",
        "immich_vitals_container_start_timestamp_seconds{@} * 1000",
        "{{component}} started",
        "Container {{container}}",
        NOTE,
    ),
    Event(
        "Version changes",
        "immich_vitals_version_changed_timestamp_seconds{@} * 1000",
        "Immich began to run in another version",
        "{{instance}}",
        "purple",
    ),
    Event(
        "Backups",
        "immich_vitals_backup_newest_timestamp_seconds{@} * 1000",
        "Backup: {{kind}}",
        "{{instance}}",
        WELL,
    ),
)


class Board:
    """One dashboard: variables and events are the same everywhere, panels are added from the top."""

    def __init__(
        self,
        name: str,
        about: str,
        *,
        since: str = "now-6h",
        fleet: bool = False,
        filters: Mapping[str, str] | None = None,
    ) -> None:
        """`filters` maps a label that links of alerts name to the metric whose values it offers; `fleet` lets several
        instances be looked at together."""
        self.name = name
        built = build.Dashboard(f"Immich: {BOARDS[name]}").uid(f"immich-vitals-{name}").description(about)
        built = built.tags(["immich", "immich-vitals"]).timezone("browser").refresh("30s").time(since, "now")
        built = built.tooltip(model.DashboardCursorSync.CROSSHAIR).editable()
        for variable in _variables(fleet, filters or {}):
            built = built.with_variable(variable)
        for other in BOARDS:
            if other != name:
                built = built.link(link_to(other))
        self._built = built

    def row(self, title: str) -> Self:
        self._built = self._built.with_row(build.Row(title))
        return self

    def add(self, *panels: Panel) -> Self:
        for panel in panels:
            self._built = self._built.with_panel(panel)  # type: ignore[arg-type]  # a protocol of ours
        return self

    def json(self) -> str:
        """The dashboard as Grafana reads it."""
        found: dict[str, Any] = json.loads(json.dumps(self._built.build(), cls=JSONEncoder))
        for place, panel in enumerate(found["panels"], start=1):
            panel["id"] = place
        found["annotations"] = {"list": [_annotation(event) for event in EVENTS]}
        del found["style"]  # dark or light is what the person has chosen
        for variable in found["templating"]["list"]:
            # The SDK gives every kind of variable what those of intervals have.
            for name in ("auto", "auto_min", "auto_count"):
                del variable[name]
        return json.dumps(found, indent=1, sort_keys=True) + "\n"


def _variables(fleet: bool, filters: Mapping[str, str]) -> Iterable[Any]:
    yield build.DatasourceVariable("datasource").label("Data source").type("prometheus")
    yield _values("job", "Job", f"label_values({KNOWN}, job)", several=True)
    yield _values("cluster", "Cluster", f'label_values({KNOWN}{{job=~"$job"}}, cluster)', several=True)
    instances = f'label_values({KNOWN}{{job=~"$job", cluster=~"$cluster"}}, instance)'
    yield _values("instance", "Immich", instances, several=fleet)
    for label, metric in filters.items():
        query = f"label_values({metric}{{{TARGET}}}, {label})"
        yield _values(label, label.replace("_", " ").capitalize(), query, several=True)


def _values(name: str, label: str, query: str, *, several: bool) -> build.QueryVariable:
    built = build.QueryVariable(name).label(label).query(query).datasource(DATASOURCE)
    built = built.refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(model.VariableSort.ALPHABETICAL_ASC)
    if not several:
        return built
    # `.*`, so that "All" also means those without the label.
    everything = model.VariableOption(selected=True, text=["All"], value=["$__all"])
    return built.multi(True).include_all(True).all_value(".*").current(everything)


def _annotation(event: Event) -> dict[str, Any]:
    return {
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "enable": True,
        "expr": expanded(event.expr),
        "iconColor": event.color,
        "name": event.name,
        "step": "60s",
        "tagKeys": "instance",
        "textFormat": event.text,
        "titleFormat": event.title,
        "useValueForTime": True,
    }


limit = rulebook.limit

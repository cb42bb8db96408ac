"""What `immich-vitals bundle` writes: rules, runbooks and dashboards, for those who have the package alone."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from immich_vitals import __version__

RUNBOOK_URL = "https://github.com/immich-vitals/immich-vitals/blob/main/docs/runbooks"
GRAFANA_URL = "http://localhost:3000"
NAME = "immich-vitals"
RECORD = ".immich-vitals-bundle.json"
OWN = "rules/own.rules.yml"
"""The person's own limits: neither copied nor touched."""

_RULE = "prometheusrule.yaml"
_PACKAGE = Path(__file__).parent
_FOLDERS = ("rules", "grafana", "kubernetes")
_ABOUT = (
    f"# Written by `immich-vitals bundle` {__version__} from its rules, where the reasons for the numbers are.\n"
    "# The braces are Prometheus' own. Kubernetes leaves them alone; inside of a Helm chart they need escaping.\n"
)


class BundleError(Exception):
    """The bundle cannot be written; the message says why, and the mend."""


def write(folder: Path, runbook_url: str = RUNBOOK_URL, grafana_url: str = GRAFANA_URL, *, force: bool = False) -> int:
    """Write the bundle into `folder`; returns the number of files.

    Files that an earlier run wrote are replaced, or removed when they are part of it no more. Nothing is written when
    one of them was changed since, or was never ours, unless `force` is set. Raises `BundleError`.
    """
    wanted = files(runbook_url, grafana_url)
    try:
        before = _written_before(folder)
        foreign = [name for name in sorted(wanted.keys() | before.keys()) if _is_foreign(folder, name, wanted, before)]
        if foreign and not force:
            raise BundleError(_refusal(folder, foreign))
        for name in before.keys() - wanted.keys():
            (folder / name).unlink(missing_ok=True)
        for name, content in wanted.items():
            _replace(folder / name, content)
        record = {"version": __version__, "files": {name: _digest(content) for name, content in wanted.items()}}
        _replace(folder / RECORD, (json.dumps(record, indent=1) + "\n").encode())
    except OSError as error:
        raise BundleError(f"cannot write {error.filename or folder}: {error.strerror or error}") from None
    return len(wanted)


def files(runbook_url: str = RUNBOOK_URL, grafana_url: str = GRAFANA_URL) -> dict[str, bytes]:
    """The bundle's files by their names in it. Raises `BundleError` when this installation came without them."""
    sources = dict(_sources())
    texts = {
        name: _with_urls(path.read_text(encoding="utf-8"), runbook_url, grafana_url) for name, path in sources.items()
    }
    groups = [
        group
        for name, text in sorted(texts.items())
        if name.endswith(".rules.yml")
        for group in yaml.safe_load(text)["groups"]
    ]
    if not groups:
        raise BundleError("this installation came without its rules; those from PyPI and the repository have them")
    texts[_RULE] = _ABOUT + _yaml(
        {
            "apiVersion": "monitoring.coreos.com/v1",
            "kind": "PrometheusRule",
            "metadata": {"name": NAME, "labels": {"app.kubernetes.io/name": NAME}},
            "spec": {"groups": groups},
        }
    )
    if "kubernetes/kustomization.yaml" in texts:
        texts["kubernetes/monitoring/" + _RULE] = texts[_RULE]
    texts["mimir.yaml"] = _ABOUT + _yaml({"namespace": NAME, "groups": groups})
    return {name: text.encode() for name, text in texts.items()}


def folders(package: Path = _PACKAGE) -> dict[str, Path]:
    """Where the parts of the bundle lie: in the package, or, where that is a checkout, in the repository."""
    inside = package / "bundle"
    if (inside / "rules").is_dir():
        return {"docs": inside, **{name: inside / name for name in _FOLDERS}}
    repository = package.parents[1]
    return {name: repository / name for name in ("docs", *_FOLDERS)}


def _sources() -> Iterator[tuple[str, Path]]:
    at = folders()
    rules = (
        path for pattern in ("*.rules.yml", "alertmanager.example.yml", "*.tmpl") for path in at["rules"].glob(pattern)
    )
    yield from _named(rules, at["rules"], "rules/")
    yield from _named((at["docs"] / "runbooks").glob("*.md"), at["docs"], "")
    yield from _named(at["docs"].glob("alerts.md"), at["docs"], "")
    for pattern in ("dashboards/*.json", "dashboards/kustomization.yaml", "provisioning/**/*.yml"):
        yield from _named(at["grafana"].glob(pattern), at["grafana"], "grafana/")
    manifests = (path for path in at["kubernetes"].glob("**/*.yaml") if path.name != _RULE)
    yield from _named(manifests, at["kubernetes"], "kubernetes/")


def _named(paths: Iterable[Path], folder: Path, prefix: str) -> Iterator[tuple[str, Path]]:
    for path in sorted(paths):
        name = prefix + path.relative_to(folder).as_posix()
        if name != OWN:
            yield name, path


def _with_urls(text: str, runbook_url: str, grafana_url: str) -> str:
    text = text.replace(RUNBOOK_URL, runbook_url.rstrip("/"))
    return re.sub(re.escape(GRAFANA_URL) + r"(?!\d)", lambda _: grafana_url.rstrip("/"), text)


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as such, and what comes twice twice."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: _Dumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def _yaml(content: dict[str, Any]) -> str:
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _written_before(folder: Path) -> dict[str, str]:
    """The names and digests of what an earlier run wrote; empty when there was none."""
    try:
        told = json.loads((folder / RECORD).read_text(encoding="utf-8"))["files"]
        found = {str(name): str(digest) for name, digest in told.items()}
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return {name: digest for name, digest in found.items() if name != OWN and _is_inside(name)}


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def _is_foreign(folder: Path, name: str, wanted: Mapping[str, bytes], before: Mapping[str, str]) -> bool:
    """Whether there is a file of this name that neither is as we would write it nor as we wrote it."""
    try:
        content = (folder / name).read_bytes()
    except FileNotFoundError:
        return False
    return content != wanted.get(name) and _digest(content) != before.get(name)


def _refusal(folder: Path, names: list[str]) -> str:
    return (
        f"not written by this command, or changed since: {', '.join(str(folder / name) for name in names)}."
        f" Nothing was written. Move what is yours elsewhere (limits into {folder / OWN}), choose another folder,"
        " or use --force to lose it"
    )


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _replace(path: Path, content: bytes) -> None:
    """Write it at once, so that a Prometheus that reloads never reads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.write_bytes(content)
    new.replace(path)

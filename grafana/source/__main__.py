"""Write the dashboards: `python -m grafana.source`."""

from pathlib import Path

from grafana.source.boards import files

FOLDER = Path(__file__).parents[1] / "dashboards"


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.json"):
        old.unlink()
    for name, text in files().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


main()

"""The table of contents: every collector there is. Adding one is a new file beside this one and one line here."""

from immich_vitals.collector import Collector

COLLECTORS: tuple[type[Collector], ...] = ()

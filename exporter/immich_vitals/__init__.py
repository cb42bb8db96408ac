"""Vital signs for Immich: a Prometheus exporter that says why photos do not load and what to fix first."""

__version__ = "0.1.0"

"""Whom to ask for containers: a Docker API, or the API of the Kubernetes cluster that we are in."""

from collections.abc import Callable
from functools import partial

from immich_vitals.config import DockerConfig
from immich_vitals.sources.docker import Docker, Engine, find_host
from immich_vitals.sources.kubernetes import Kubernetes


def ways_to_engine(config: DockerConfig, *, runs: bool = False) -> Callable[[], Engine] | None:
    """What makes a new way to it, or None when there is nobody to ask: DOCKER_HOST, the cluster's API, a usual socket.

    `runs`: for logs; see `Kubernetes`.
    """
    if config.host is None and config.kubernetes is not None:
        return partial(Kubernetes, config.kubernetes, runs=runs)
    host = find_host(config)
    return partial(Docker, host, config) if host else None


def find_engine(config: DockerConfig, *, runs: bool = False) -> Engine | None:
    """One way to it, as `ways_to_engine` says."""
    ways = ways_to_engine(config, runs=runs)
    return ways() if ways else None

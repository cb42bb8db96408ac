"""Whom to ask for containers: a Docker API, or the API of the Kubernetes cluster that we are in."""

from immich_vitals.config import DockerConfig
from immich_vitals.sources.docker import Docker, Engine, find_host
from immich_vitals.sources.kubernetes import Kubernetes


def find_engine(config: DockerConfig, *, runs: bool = False) -> Engine | None:
    """A new way to it, or None when there is nobody to ask: DOCKER_HOST, the cluster's API, or a usual socket.

    `runs`: for logs; see `Kubernetes`.
    """
    if config.host is None and config.kubernetes is not None:
        return Kubernetes(config.kubernetes, runs=runs)
    host = find_host(config)
    return Docker(host, config) if host else None

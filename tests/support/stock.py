"""A project like the one that Immich publishes, and what stands in for what is around it."""

from pathlib import Path

from support import images

# As Immich's own example has them, without what only a browser or a graphics card needs.
ENVIRONMENT = """
UPLOAD_LOCATION=./library
DB_DATA_LOCATION=./postgres
IMMICH_VERSION=v2.7.5
DB_PASSWORD=postgres
DB_USERNAME=postgres
DB_DATABASE_NAME=immich
"""
IMMICH = """
name: immich
services:
  immich-server:
    container_name: immich_server
    image: ghcr.io/immich-app/immich-server:${IMMICH_VERSION:-release}
    volumes:
      - ${UPLOAD_LOCATION}:/data
      - /etc/localtime:/etc/localtime:ro
    env_file:
      - .env
    ports:
      - '2283:2283'
    depends_on:
      - redis
      - database
    restart: always
  immich-machine-learning:
    container_name: immich_machine_learning
    image: ghcr.io/immich-app/immich-machine-learning:${IMMICH_VERSION:-release}
    volumes:
      - model-cache:/cache
    env_file:
      - .env
    restart: always
  redis:
    container_name: immich_redis
    image: docker.io/valkey/valkey:9
    restart: always
  database:
    container_name: immich_postgres
    image: ghcr.io/immich-app/postgres:14-vectorchord0.4.3-pgvectors0.2.0
    environment:
      POSTGRES_PASSWORD: ${DB_PASSWORD}
      POSTGRES_USER: ${DB_USERNAME}
      POSTGRES_DB: ${DB_DATABASE_NAME}
    volumes:
      - ${DB_DATA_LOCATION}:/var/lib/postgresql/data
    shm_size: 128mb
    restart: always
volumes:
  model-cache:
"""
# What tecnativa/docker-socket-proxy makes of its environment, for the words that the example uses. `_ping` and
# `version` are open there unless closed.
DOCKER_PROXY = r"""
global
    log stdout format raw daemon info
defaults
    mode http
    log global
    timeout connect 10s
    timeout client 10m
    timeout server 10m
backend docker
    server docker /var/run/docker.sock
frontend api
    bind :2375
    http-request deny unless METH_GET || { env(POST) -m bool }
    http-request allow if { path,url_dec -m reg -i ^(/v[\d\.]+)?/(_ping|version) }
    http-request allow if { path,url_dec -m reg -i ^(/v[\d\.]+)?/containers } { env(CONTAINERS) -m bool }
    http-request allow if { path,url_dec -m reg -i ^(/v[\d\.]+)?/events } { env(EVENTS) -m bool }
    http-request allow if { path,url_dec -m reg -i ^(/v[\d\.]+)?/info } { env(INFO) -m bool }
    http-request allow if { path,url_dec -m reg -i ^(/v[\d\.]+)?/images } { env(IMAGES) -m bool }
    http-request deny
    default_backend docker
"""


def compose_plugin(folder: Path) -> Path:
    """A folder of Docker's settings in which the client finds Debian 13's Compose; what else was unpacked with it, its
    Alertmanager, is in `root`.

    Debian 12 has them, too, but a Compose that knows no `name:`, and an Alertmanager that reads no token from a file.
    """
    images.debian(folder / "root", "docker-compose", "prometheus-alertmanager")
    plugins = folder / "cli-plugins"
    plugins.mkdir()
    (plugins / "docker-compose").symlink_to(folder / "root/usr/libexec/docker/cli-plugins/docker-compose")
    return folder

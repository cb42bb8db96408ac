# Any image with Python 3.11 or newer and pip will do as base.
ARG BASE=docker.io/library/python:3.13-slim
# That of exporter/immich_vitals/__init__.py; with another one the build fails.
ARG VERSION=0.1.0

FROM ${BASE} AS build
ARG VERSION
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE CHANGELOG.md ./
COPY exporter exporter
COPY rules rules
COPY docs docs
COPY grafana grafana
COPY kubernetes kubernetes
RUN python3 -m venv /app \
 && /app/bin/pip install --no-cache-dir --disable-pip-version-check --constraint constraints.txt . \
 && /app/bin/pip uninstall --yes --quiet setuptools pip \
 && test "$(/app/bin/immich-vitals --version)" = "immich-vitals ${VERSION}"

FROM ${BASE}
ARG VERSION
LABEL org.opencontainers.image.title="immich-vitals" \
      org.opencontainers.image.description="Vital signs for Immich, for Prometheus" \
      org.opencontainers.image.source="https://github.com/immich-vitals/immich-vitals" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
COPY --from=build /app /app
# A volume mounted here for IMMICH_VITALS_STATE_PATH begins with this owner. The pip of the base goes: nothing is ever
# installed in here.
RUN mkdir /state && chown 65532:65532 /state \
 && find /usr -xdev \( -name pip -o -name 'pip[-3]*' -o -name ensurepip \) -prune -exec rm -rf {} +
ENV PATH=/app/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 65532:65532
EXPOSE 12283
# It asks where IMMICH_VITALS_LISTEN_ADDRESS says, port 12283 unless set; a flag given to `serve` alone it cannot see.
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s --retries=3 CMD ["immich-vitals", "healthcheck"]
ENTRYPOINT ["immich-vitals"]
CMD ["serve"]

# `make demo` and `make test` do all their set-up; they need Python 3.11 and make.
.PHONY: help demo test lint bench soak docs golden dist audit image-size clean

FAULT ?=

help:
	@echo "make demo [FAULT=name]   run the exporter beside an embedded Postgres, Redis and media folder"
	@echo "make test [ARGS=...]     all tests that this machine has the parts for"
	@echo "make lint                ruff and mypy"
	@echo "make drills [ARGS=...]   break machines with Immich for real; writes docs/drills.md"
	@echo "make bench [ARGS=...]    measure; writes docs/benchmarks.md"
	@echo "make soak [ARGS=...]     scrape 100,000 times amid faults; writes its part of docs/benchmarks.md"
	@echo "make docs                write the reference pages, the frame of each runbook, and the dashboards anew"
	@echo "make dist                the wheel, the source distribution and the SBOM into dist/, each of them tried"
	@echo "make audit               whether vulnerabilities are known of what we depend on"
	@echo "make image-size          what is in the image immich-vitals; writes docs/image.md"
	@echo "make golden              rewrite the expected.prom files; read the diff"

.venv/ready: pyproject.toml constraints.txt scripts/venv
	@scripts/venv

demo: .venv/ready
	@.venv/bin/immich-vitals demo $(if $(FAULT),--fault $(FAULT)) $(ARGS)

# These watch how fast real servers answer: nothing hard-working beside them.
ALONE = tests/drills $(addprefix tests/integration/,test_alerts_of_containers.py test_alerts_of_the_demo.py)
# These mostly wait.
WAITING = tests/reliability

test: .venv/ready
ifdef ARGS
	@.venv/bin/pytest $(ARGS)
else
	@.venv/bin/pytest -n 2 --dist loadfile $(addprefix --ignore=,$(ALONE) $(WAITING))
	@.venv/bin/pytest -n 2 $(WAITING)
	@.venv/bin/pytest $(ALONE)
endif

lint: .venv/ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

drills: .venv/ready
	@.venv/bin/pytest tests/drills --drills-report $(or $(ARGS),--all-drills)

bench: .venv/ready
	@.venv/bin/python -m bench $(ARGS)

soak: .venv/ready
	@.venv/bin/python -m bench.soak $(ARGS)

docs: .venv/ready
	.venv/bin/immich-vitals metrics > docs/metrics.md
	.venv/bin/immich-vitals config > docs/configuration.md
	@.venv/bin/python scripts/alerts
	@.venv/bin/python scripts/coverage
	@.venv/bin/python scripts/kubernetes
	@.venv/bin/python -m grafana.source

golden: .venv/ready
	.venv/bin/pytest --update-golden tests/collectors

dist: .venv/ready
	@.venv/bin/python scripts/dist

audit:
	@scripts/audit

IMAGE ?= immich-vitals

image-size:
	@scripts/image-size $(IMAGE)

clean:
	rm -rf .venv dist build

"""Pods as a Kubernetes API tells them, written by the reference of its version 1.33; only what matters differs."""

import json
from pathlib import Path
from typing import Any

Json = dict[str, Any]

_MAKERS = {"Job": "batch/v1", "Cluster": "postgresql.cnpg.io/v1"}
CREATED, STARTED, ENDED = "2026-11-20T19:00:00Z", "2026-11-20T19:00:05Z", "2026-11-21T08:30:00Z"


def run_id(pod: str, container: str, run: int = 0) -> str:
    """The id of one run of a container, as a runtime would make it."""
    return f"containerd://{(pod + container).encode().hex()[:40]:0<56}{run:08d}"


def running(pod: str, container: str, run: int = 0, started: str = STARTED, last: Json | None = None) -> Json:
    """The status of a container that runs and is ready."""
    state = {"running": {"startedAt": started}}
    return {
        "name": container, "ready": True, "started": True, "restartCount": run,
        "containerID": run_id(pod, container, run), "state": state, "lastState": {"terminated": last} if last else {},
    }  # fmt: skip


def terminated(
    pod: str, container: str, run: int = 0, code: int = 1, reason: str = "Error", ended: str = ENDED
) -> Json:
    return {
        "exitCode": code, "reason": reason, "startedAt": STARTED, "finishedAt": ENDED,
        "containerID": run_id(pod, container, run),
    }  # fmt: skip


def ended(pod: str, container: str, run: int = 0, code: int = 1, reason: str = "Error") -> Json:
    """The status of a container whose run has just ended."""
    state = {"terminated": terminated(pod, container, run, code, reason)}
    return {
        "name": container, "ready": False, "started": False, "restartCount": run,
        "containerID": run_id(pod, container, run), "state": state, "lastState": {},
    }  # fmt: skip


def waiting(container: str, reason: str, restarts: int = 0, last: Json | None = None) -> Json:
    """The status of a container that waits."""
    return {
        "name": container, "ready": False, "started": False, "restartCount": restarts,
        "state": {"waiting": {"reason": reason, "message": "hunter2 is what it says"}},
        "lastState": {"terminated": last} if last else {},
    }  # fmt: skip


def pod(
    name: str, image: str, labels: Json, *, container: str = "main", status: Json | None = None, phase: str = "Running",
    owner: tuple[str, str] | None = None, mounts: Json | None = None, probe: bool = True, **more: Any,
) -> Json:  # fmt: skip
    """A pod of one container; `mounts` are its volumes by the path that they are mounted at."""
    volumes = list((mounts or {}).values())
    hash_of = name.rsplit("-", 2)[1] if name.count("-") >= 2 else ""
    owner = owner or ("ReplicaSet", name.rsplit("-", 1)[0])
    if owner[0] == "ReplicaSet":
        labels = {**labels, "pod-template-hash": hash_of}
    spec: Json = {
        "containers": [
            {
                "name": container, "image": image,
                "env": [
                    {"name": "DB_PASSWORD", "value": "hunter2"},
                    {"name": "IMMICH_API_KEY", "valueFrom": {"secretKeyRef": {"name": "hunter2", "key": "x"}}},
                ],
                "resources": more.get("resources", {}),
                "volumeMounts": [
                    *({"name": each["name"], "mountPath": path} for path, each in (mounts or {}).items()),
                    {"name": "kube-api-access", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
                     "readOnly": True},
                ],
                **({"readinessProbe": {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 10,
                                       "failureThreshold": 3}} if probe else {}),
                **more.get("spec", {}),
            }
        ],
        "restartPolicy": more.get("policy", "Always"), "nodeName": "worker-1",
        "volumes": [*volumes, {"name": "kube-api-access", "projected": {"sources": []}}],
    }  # fmt: skip
    statuses = [] if status == {} else [status or running(name, container)]
    return {
        "metadata": {
            "name": name, "namespace": "immich", "uid": f"uid-{name}", "resourceVersion": "900",
            "creationTimestamp": CREATED, "labels": labels, "annotations": {"note": "hunter2"},
            "ownerReferences": [
                {"apiVersion": _MAKERS.get(owner[0], "apps/v1"), "kind": owner[0], "name": owner[1],
                 "uid": f"uid-{owner[1]}", "controller": True}
            ],
            **more.get("metadata", {}),
        },
        "spec": {**spec, **more.get("pod", {})},
        "status": {
            "phase": phase, "podIP": "10.42.0.7", "conditions": more.get("conditions", []),
            "containerStatuses": [{"image": "sha256:abc", "imageID": "sha256:abc", **each} for each in statuses],
        },
    }  # fmt: skip


def chart(name: str, release: str = "immich") -> Json:
    """The labels that the official chart gives to the pods of one of its parts."""
    return {
        "app.kubernetes.io/controller": "main", "app.kubernetes.io/instance": release, "app.kubernetes.io/name": name,
    }  # fmt: skip


LIBRARY = {"name": "data", "persistentVolumeClaim": {"claimName": "immich-library-pvc"}}


def server(suffix: str = "7d9c5f6b8-x2kqp", **more: Any) -> Json:
    more = {"mounts": {"/data": LIBRARY}, "resources": {"limits": {"memory": "4Gi"}}, **more}
    return pod(f"immich-server-{suffix}", "ghcr.io/immich-app/immich-server:v2.6.3", chart("server"), **more)


def machine_learning(**more: Any) -> Json:
    mounts = {"/cache": {"name": "cache", "emptyDir": {"sizeLimit": "10Gi"}}}
    return pod(
        "immich-machine-learning-58f7d94c6-9wz4m", "ghcr.io/immich-app/immich-machine-learning:v2.6.3",
        chart("machine-learning"), mounts=mounts, **more,
    )  # fmt: skip


def valkey(**more: Any) -> Json:
    image = "docker.io/valkey/valkey:9.1-alpine@sha256:34f4f659e02a67cfdf3995d11ae432219c936005055b2cd39a042e86280e053e"
    return pod("immich-valkey-6c8b9d7f5-lm2vn", image, chart("valkey"), **more)


def database(number: int = 1, role: str = "primary", **more: Any) -> Json:
    """A Postgres of CloudNativePG, with its own labels, volumes and names."""
    labels = {
        "app.kubernetes.io/component": "database", "app.kubernetes.io/instance": "immich-database",
        "app.kubernetes.io/managed-by": "cloudnative-pg", "app.kubernetes.io/name": "postgresql",
        "cnpg.io/cluster": "immich-database", "cnpg.io/instanceName": f"immich-database-{number}",
        "cnpg.io/instanceRole": role, "cnpg.io/podRole": "instance", "role": role,
    }  # fmt: skip
    claim = {"claimName": f"immich-database-{number}"}
    mounts = {
        "/var/lib/postgresql/data": {"name": "pgdata", "persistentVolumeClaim": claim},
        "/dev/shm": {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "256Mi"}},
    }  # fmt: skip
    more = {"resources": {"limits": {"memory": "2G"}}, **more}
    return pod(
        f"immich-database-{number}", "ghcr.io/tensorchord/cloudnative-vectorchord:16.9-0.4.3", labels,
        container="postgres", owner=("Cluster", "immich-database"), mounts=mounts, **more,
    )  # fmt: skip


def healthy() -> list[Json]:
    return [server(), machine_learning(), valkey(), database()]


def replaced(pods: list[Json], *others: Json) -> list[Json]:
    """The pods, with those of the same name replaced, and the others added."""
    names = {each["metadata"]["name"] for each in others}
    return [*(each for each in pods if each["metadata"]["name"] not in names), *others]


S, ML = "immich-server-7d9c5f6b8-x2kqp", "immich-machine-learning-58f7d94c6-9wz4m"
V = "immich-valkey-6c8b9d7f5-lm2vn"


def cases() -> dict[str, list[Json]]:
    """What the golden cases were written from."""
    crash = waiting("main", "CrashLoopBackOff", 7, terminated(S, "main", 7))
    oom = running(ML, "main", 2, "2026-11-21T08:30:12Z", terminated(ML, "main", 1, 137, "OOMKilled"))
    oom_now = waiting("main", "CrashLoopBackOff", 3, terminated(V, "main", 3, 137, "OOMKilled"))
    unschedulable = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    job = pod("immich-database-1-initdb-8xk2p", "ghcr.io/tensorchord/cloudnative-vectorchord:16.9-0.4.3",
              {"cnpg.io/cluster": "immich-database", "cnpg.io/jobRole": "initdb"}, container="initdb",
              owner=("Job", "immich-database-1-initdb"), phase="Succeeded", policy="Never",
              status=ended("immich-database-1-initdb-8xk2p", "initdb", 0, 0, "Completed"))  # fmt: skip
    backup = pod("immich-backup-29400000-abcde", "ghcr.io/immich-app/immich-server:v2.6.3", chart("server"),
                 owner=("Job", "immich-backup-29400000"), phase="Failed", policy="Never",
                 status=ended("immich-backup-29400000-abcde", "main"))  # fmt: skip
    paperless = {"app.kubernetes.io/instance": "paperless", "app.kubernetes.io/name": "redis"}
    strangers = [
        pod("paperless-redis-7c9d8f6b5-aaaaa", "docker.io/library/redis:7", paperless),
        pod("paperless-db-1", "ghcr.io/cloudnative-pg/postgresql:16.4", {
            "cnpg.io/cluster": "paperless-db", "app.kubernetes.io/instance": "paperless-db",
        }, container="postgres", owner=("Cluster", "paperless-db")),
        pod("immich-database-pooler-6f7b8c9d5-bbbbb", "ghcr.io/cloudnative-pg/pgbouncer:1.24.0", {
            "cnpg.io/poolerName": "immich-database-pooler", "cnpg.io/podRole": "pooler",
            "cnpg.io/cluster": "immich-database",
        }, container="pgbouncer"),
        pod("immich-vitals-5f6d7c8b9-ccccc", "immich-vitals:0.1.0", {"app.kubernetes.io/name": "immich-vitals"}),
        pod("immich-valkey-exporter-5d4c3b2a1-ddddd", "oliver006/redis_exporter:v1.67.0", chart("valkey")),
    ]  # fmt: skip
    evicted = server("7d9c5f6b8-old00", phase="Failed", status={}, metadata={"deletionTimestamp": ENDED})
    return {
        "healthy": healthy(),
        "crash-loop": replaced(healthy(), server(status=crash)),
        "oom": replaced(healthy(), machine_learning(status=oom), valkey(status=oom_now)),
        "image-pull": replaced(healthy(), machine_learning(status=waiting("main", "ImagePullBackOff"), phase="Pending"),
                               valkey(status=waiting("main", "CreateContainerConfigError"), phase="Pending")),
        "pending": replaced(healthy(), server(status={}, phase="Pending", conditions=[unschedulable]),
                            valkey(status=waiting("main", "ContainerCreating"), phase="Pending")),
        "replicas": replaced(
            [*healthy(), server("7d9c5f6b8-second", status={**running("immich-server-7d9c5f6b8-second", "main"),
                                                           "ready": False}),
             database(2, "replica")], evicted),
        "jobs": [*healthy(), job, backup],
        "strangers": [*healthy(), *strangers],
        "one-bad": [*healthy()[:3], {"metadata": {"name": "immich-database-1"}, "spec": None}],
        "by-hand": by_hand(),
        "app-template": app_template(),
        "lost-photos": replaced(healthy(), server(mounts={"/data": {"name": "data", "emptyDir": {}}})),
    }  # fmt: skip


def by_hand() -> list[Json]:
    """Plain manifests with nothing but the label `app`, all in a namespace of its own; one pod has two parts."""
    both = pod("immich-0", "registry.example.org/immich-app/immich-server:v2.6.3", {"app": "immich"},
               container="server", owner=("StatefulSet", "immich"), probe=False,
               mounts={"/usr/src/app/upload": {"name": "photos", "hostPath": {"path": "/srv/photos"}}})  # fmt: skip
    both["spec"]["containers"].append(
        {"name": "ml", "image": "ghcr.io/immich-app/immich-machine-learning:v2.6.3-openvino"}
    )
    images = {"image": "sha256:abc", "imageID": "sha256:abc"}
    both["status"]["containerStatuses"].append({**images, **running("immich-0", "ml")})
    return [
        both,
        pod("redis-5c6d7e8f9-zzzzz", "redis:7.4", {"app": "redis"}, container="redis", probe=False),
        pod("postgres-0", "ghcr.io/immich-app/postgres:14-vectorchord0.4.3-pgvectors0.2.0", {"app": "postgres"},
            container="postgres", owner=("StatefulSet", "postgres"), probe=False),
    ]  # fmt: skip


def app_template() -> list[Json]:
    """One release of bjw-s' app-template with a controller for each part."""

    def part(controller: str, image: str, **more: Any) -> Json:
        labels = {**chart("immich", "photos"), "app.kubernetes.io/controller": controller}
        return pod(f"photos-{controller}-6d5c4b3a2-{controller[:5]}", image, labels, container="app", **more)

    return [
        part("server", "ghcr.io/immich-app/immich-server:v2.6.3", mounts={"/data": LIBRARY},
             spec={"env": [{"name": "IMMICH_WORKERS_INCLUDE", "value": "api"}]}),
        part("microservices", "ghcr.io/immich-app/immich-server:v2.6.3", mounts={"/data": LIBRARY},
             spec={"env": [{"name": "IMMICH_WORKERS_EXCLUDE", "value": "api"}]}),
        part("machine-learning", "ghcr.io/immich-app/immich-machine-learning:v2.6.3"),
        part("redis", "ghcr.io/valkey-io/valkey:8.1.1", spec={"readinessProbe": {"tcpSocket": {"port": 6379}}}),
    ]  # fmt: skip


def write(golden: Path) -> None:
    """Write the inputs of the golden cases anew."""
    for name, pods in cases().items():
        folder = golden / "container" / f"kubernetes-{name}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "pods.json").write_text(json.dumps(pods, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(Path(__file__).parents[1] / "collectors" / "golden")

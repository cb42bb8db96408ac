"""What the description of a pod is taken for, part by part; whole ones are golden cases of the collector."""

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from immich_vitals.collector import Unavailable
from immich_vitals.sources.docker_immich import media_mounted
from immich_vitals.sources.docker_writers import FolderMount, folder_mounts, user_of
from immich_vitals.sources.kubernetes_pods import PodContainer, pod_of, quantity
from support import pods

Json = dict[str, Any]


def container(pod: Json) -> PodContainer:
    (found,) = pod_of(pod, 0.0).containers
    return found


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("128Mi", 128 * 2**20), ("1.5Gi", 1.5 * 2**30), ("2G", 2e9), ("500k", 5e5), ("250m", 0.25), ("12n", 1.2e-8),
        ("7u", 7e-6), ("1e3", 1e3), ("1E3", 1e3), ("2E", 2e18), ("1Ei", 2**60), (".5", 0.5), ("3.", 3), ("+2", 2),
        ("0", 0), (4, 4), (0.5, 0.5),
        ("", None), ("Mi", None), ("1K", None), ("1KiB", None), ("1 Gi", None), ("e3", None), (None, None), ([], None),
    ],
)  # fmt: skip
def test_quantities(text: object, number: float | None) -> None:
    """Numbers as Kubernetes writes them; what is none is not guessed."""
    found = quantity(text)
    assert found == (None if number is None else pytest.approx(number))


def test_limit_in_force() -> None:
    """A limit that was changed in place counts as the node has it."""
    status = {**pods.running(pods.S, "main"), "resources": {"limits": {"memory": "8Gi"}}}
    assert container(pods.server(status=status)).facts.memory_limit == 8 * 2**30
    assert container(pods.valkey()).facts.memory_limit is None


@pytest.mark.parametrize(
    ("pod", "own", "user"),
    [
        ({}, {}, ""),
        ({"runAsUser": 1000}, {}, "1000"),
        ({"runAsUser": 1000, "runAsGroup": 1001}, {}, "1000:1001"),
        ({"runAsUser": 1000, "runAsGroup": 1001}, {"runAsUser": 0}, "0:1001"),
        ({"runAsGroup": 1001}, {}, "0:1001"),
    ],
)
def test_users(pod: Json, own: Json, user: str) -> None:
    """What a container says of its user wins over what the pod says; without either it is the image's."""
    found = container(pods.server(pod={"securityContext": pod}, spec={"securityContext": own})).facts
    assert found.user == user
    assert user_of(found, maps_users=True) is not None


def test_groups_capabilities_and_namespaces() -> None:
    """The groups of a pod are those of its volumes, too; root without DAC_OVERRIDE is not above permissions; numbers
    in a user namespace are not the host's."""
    context = {"securityContext": {"fsGroup": 2000, "supplementalGroups": [3000]}}
    found = user_of(container(pods.server(pod=context)).facts, maps_users=True)
    assert found is not None
    assert (found.groups, found.overrides) == ({2000, 3000}, True)
    dropped = pods.server(spec={"securityContext": {"capabilities": {"drop": ["ALL"]}}})
    found = user_of(container(dropped).facts, maps_users=True)
    assert found is not None
    assert not found.overrides
    assert user_of(container(pods.server(pod={"hostUsers": False})).facts, maps_users=True) is None


@pytest.mark.parametrize(
    ("volume", "kept"),
    [
        ({"persistentVolumeClaim": {"claimName": "x"}}, True), ({"hostPath": {"path": "/srv/photos"}}, True),
        ({"nfs": {"server": "nas", "path": "/photos"}}, True), ({"csi": {"driver": "x"}}, True),
        ({"emptyDir": {}}, False), ({"emptyDir": {"medium": "Memory"}}, False), ({"ephemeral": {}}, False),
    ],
)  # fmt: skip
def test_what_keeps_photos(volume: Json, kept: bool) -> None:
    """A volume that is made for the pod alone goes with it."""
    found = container(pods.server(mounts={"/data": {"name": "data", **volume}}))
    assert media_mounted(found.facts) is kept


def test_photos_in_the_container() -> None:
    """Without any volume at the media location the photos are lost with the container."""
    assert media_mounted(container(pods.server(mounts={})).facts) is False


@pytest.mark.parametrize(
    ("spec", "target", "kept"),
    [
        ({"envFrom": [{"secretRef": {"name": "x"}}]}, "/photos", None),
        ({"envFrom": [{"secretRef": {"name": "x"}}]}, "/data", True),
        ({"env": [{"name": "IMMICH_MEDIA_LOCATION", "valueFrom": {}}]}, "/photos", None),
        ({"env": [{"name": "IMMICH_MEDIA_LOCATION", "value": "/photos"}], "envFrom": [{}]}, "/photos", True),
        ({"env": [{"name": "IMMICH_MEDIA_LOCATION", "value": "/photos"}], "envFrom": [{}]}, "/data", False),
        ({"envFrom": []}, "/photos", False),
    ],
)
def test_media_location_that_is_not_told(spec: Json, target: str, kept: bool | None) -> None:
    """Where the media location may be set in a ConfigMap or Secret, photos in another place are not called lost."""
    found = container(pods.server(spec=spec, mounts={target: pods.LIBRARY}))
    assert media_mounted(found.facts) is kept


def test_folders_mounted_from_elsewhere() -> None:
    """A folder that is another one of the host is told as such, and what may not be written to as well."""
    pod = pods.server(mounts={"/data": {"name": "data", "hostPath": {"path": "/srv/immich"}},
                              "/data/library": {"name": "nas", "hostPath": {"path": "/mnt/nas/"}}})  # fmt: skip
    pod["spec"]["containers"][0]["volumeMounts"][1] |= {"readOnly": True, "subPath": "photos"}
    found = folder_mounts(container(pod).facts)
    assert found["library"] == FolderMount(writable=False, elsewhere=True)
    assert found["thumbs"] == FolderMount(writable=True, elsewhere=False)


def test_waiting_for_an_init_container() -> None:
    """A container that waits for another one to prepare it is held up only where that one fails."""
    for state, failed in (({"running": {}}, False), ({"waiting": {"reason": "CrashLoopBackOff"}}, True)):
        pod = pods.server(status=pods.waiting("main", "PodInitializing"), phase="Pending")
        pod["status"]["initContainerStatuses"] = [{"name": "init", "state": state}]
        assert container(pod).facts.start_failed is failed
        assert container(pod).facts.state == "created"


def test_a_program_that_is_not_there() -> None:
    """A run that could not begin waits as one that crashed does, and is told as what it is."""
    last = pods.terminated(pods.S, "main", 2, 128, "StartError")
    found = container(pods.server(status=pods.waiting("main", "CrashLoopBackOff", 2, last))).facts
    assert (found.state, found.start_failed, found.exit_code) == ("restarting", True, 128)


@pytest.mark.parametrize(
    ("policy", "code", "state"),
    [("Always", 0, "restarting"), ("OnFailure", 1, "restarting"), ("OnFailure", 0, "exited"), ("Never", 1, "exited")],
)
def test_between_two_runs(policy: str, code: int, state: str) -> None:
    """What has ended and will be started again is not down for good."""
    found = container(pods.server(status=pods.ended(pods.S, "main", 0, code), policy=policy)).facts
    assert (found.state, found.exit_code) == (state, code)


def test_lost_sight_of() -> None:
    """The code that stands for "nobody knows" is not taken for a kill."""
    status = pods.ended(pods.S, "main", 0, 137, "ContainerStatusUnknown")
    found = container(pods.server(status=status))
    assert found.facts.exit_code is None
    assert [end.code for end in found.ends] == ["unknown"]


def _places(found: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ()
    return [path, *(place for key, value in inner for place in _places(value, (*path, key)))]


WHOLE = pods.server(status=pods.running(pods.S, "main", 2, last=pods.terminated(pods.S, "main", 1)))
JUNK = st.sampled_from([None, 0, -1, 1.5, True, "", "x", "9" * 30, [], [None], ["x"], {}, {"x": None}, {"name": {}}])


@settings(max_examples=300, deadline=None)
@given(place=st.sampled_from(_places(WHOLE)), junk=JUNK)
def test_garbage(place: tuple[Any, ...], junk: Any) -> None:
    """Whatever stands at whatever place, a pod is read, or said to be none."""
    pod: Any = copy.deepcopy(WHOLE)
    if not place:
        pod = junk
    else:
        at = pod
        for key in place[:-1]:
            at = at[key]
        at[place[-1]] = junk
    try:
        found = pod_of(pod, 0.0)
    except Unavailable:
        return
    for each in found.containers:
        media_mounted(each.facts)
        folder_mounts(each.facts)
        user_of(each.facts, maps_users=True)

"""Templates for clusters: of the form that Ray and KubeRay ask for, with a command that ours parses."""

from __future__ import annotations

import copy
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.support.commands import check_parses
from tests.support.kuberay import RAYJOB
from workloads import find

ROOT = Path(__file__).parents[2]
CLUSTER, JOB = ROOT / "deploy" / "ray-cluster.yaml", ROOT / "deploy" / "kuberay-rayjob.yaml"


def ray_minimum() -> str:
    """The oldest Ray of pyproject.toml, e.g. 2.60."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (requirement,) = (text for text in project["dependencies"] if text.startswith("ray["))
    return str(re.fullmatch(r"ray\[.*\]>=([\d.]+)", requirement)[1])  # type: ignore[index]


def check_as_ray_up(cluster: dict[str, Any]) -> None:
    """What `ray up` checks before it starts anything: the schema that Ray ships, and sums and names that it cannot say."""
    ready = prepare_config(copy.deepcopy(cluster))
    validate_config(ready)


def test_the_cluster_is_one_that_ray_up_takes() -> None:
    cluster = yaml.safe_load(CLUSTER.read_text())
    check_as_ray_up(cluster)
    for change, error in (
        ({"workers": 3}, jsonschema.ValidationError),
        ({"idle_timeout_minutes": "soon"}, jsonschema.ValidationError),
        ({"head_node_type": "none"}, ValueError),
        ({"max_workers": 3}, ValueError),
    ):
        with pytest.raises(error):
            check_as_ray_up(cluster | change)
    gpus = cluster["available_node_types"]["gpu"]
    assert cluster["head_node_type"] in cluster["available_node_types"]
    assert gpus["resources"]["GPU"] * gpus["min_workers"] == 128 == gpus["resources"]["GPU"] * gpus["max_workers"]
    assert cluster["max_workers"] >= gpus["max_workers"]
    assert f'ray[default,train,tune]>={ray_minimum()}"' in CLUSTER.read_text()
    assert any("/shared" in command and "mount" in command for command in cluster["initialization_commands"])


def test_the_cluster_s_command_trains_on_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = re.findall(r"ray exec deploy/ray-cluster.yaml '(mgray .*)'", CLUSTER.read_text())
    check_command(line, monkeypatch)


def check_command(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It trains a workload of 128 GPUs, with data and records on the volume, on the cluster that runs."""
    program, *arguments = shlex.split(line)
    assert program == "mgray" and arguments[0] == "train"
    check_parses(arguments, monkeypatch)
    run = find(arguments[1])
    assert run is not None and run.scale.workers == 128
    for option, start in (
        ("--data.path", "/shared/"),
        ("--storage", "/shared/"),
        ("--scale.address", "auto"),
        ("--scale.gpu", "yes"),
    ):
        assert arguments[arguments.index(option) + 1].startswith(start)


def containers(group: dict[str, Any]) -> list[dict[str, Any]]:
    """A group's containers, each with equal requests and limits, and volumes that the pod has."""
    pod = group["template"]["spec"]
    volumes = {volume["name"] for volume in pod["volumes"]}
    for container in pod["containers"]:
        assert container["resources"]["limits"] == container["resources"]["requests"]
        assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
    return list(pod["containers"])


def test_the_job_is_a_rayjob(monkeypatch: pytest.MonkeyPatch) -> None:
    job = yaml.safe_load(JOB.read_text())
    jsonschema.validate(job, RAYJOB)
    spec = job["spec"]
    check_command(spec["entrypoint"], monkeypatch)
    cluster = spec["rayClusterSpec"]
    assert cluster["rayVersion"] == f"{ray_minimum()}.0"
    head, (workers,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert workers["replicas"] == workers["minReplicas"] == workers["maxReplicas"] == 16
    (container,) = containers(workers)
    assert workers["replicas"] * int(container["resources"]["limits"]["nvidia.com/gpu"]) == 128
    (head_container,) = containers(head)
    assert {port["containerPort"] for port in head_container["ports"]} >= {6379, 8265}
    assert head_container["image"] == container["image"]
    claims = [
        {volume["persistentVolumeClaim"]["claimName"] for volume in group["template"]["spec"]["volumes"] if "persistentVolumeClaim" in volume}
        for group in (head, workers)
    ]  # fmt: skip
    assert claims[0] == claims[1] != set()  # one volume for all
    for item in (container, head_container):
        assert {"name": "shared", "mountPath": "/shared"} in item["volumeMounts"]


WORKERS = ("spec", "rayClusterSpec", "workerGroupSpecs", 0)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("kind",), "RayCluster"),
        (("metadata", "name"), "My_Job"),
        (("spec", "entryPoint"), "mgray train demo"),
        (("spec", "backoffLimit"), "2"),
        (("spec", "submissionMode"), "SSHMode"),
        (("spec", "rayClusterSpec", "rayVersion"), 2.6),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("spec", "rayClusterSpec", "headGroupSpec", "template"), {}),
        ((*WORKERS, "replicas"), "16"),
        ((*WORKERS, "groupName"), None),
        ((*WORKERS, "template", "spec", "containers"), []),
        ((*WORKERS, "template", "spec", "containers", 0, "resources", "limits", "memory"), "900 GiB"),
        ((*WORKERS, "template", "spec", "containers", 0, "volumeMounts", 0, "mountPath"), "shared"),
        ((*WORKERS, "template", "spec", "volumes", 1, "emptyDir", "medium"), "Disk"),
    ],
)
def test_a_job_that_kuberay_would_refuse_is_found(path: tuple[str | int, ...], value: object) -> None:
    job = yaml.safe_load(JOB.read_text())
    *above, last = path
    place = job
    for key in above:
        place = place[key]
    place[last] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(job, RAYJOB)

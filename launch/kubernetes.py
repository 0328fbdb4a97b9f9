"""A JobSet of Kubernetes that trains one run: a pod on each node, all started again where that
helps.

Sources: the API reference of JobSet (jobset.x-k8s.io/v1alpha2) and of Job (batch/v1).
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

import yaml
from pydantic.dataclasses import dataclass

from launch.environment import check_settings
from launch.torchrun import CONFIG_VARIABLE, HASH_VARIABLE, OVERRIDES_VARIABLE
from loopcoder.config.types import STRICT, NonNegativeInt, PositiveInt
from loopcoder.errors import EXIT_BAD_INPUT, EXIT_NO_RETRY, InputError, Problem

_CONTAINER, _PODS = "loopcoder", "node"
_PORT = 29500
_FINAL = [1, 2, EXIT_BAD_INPUT, EXIT_NO_RETRY, 126, 127]
"""Exit codes after which no pod starts again: a fault of the program or its input, or no such
program; all others, as of a node that is gone, start all pods again."""
_NAME = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"


@dataclass(frozen=True, config=STRICT)
class KubernetesConfig:
    """What a job asks Kubernetes for. Secrets are named, never written down."""

    image: str
    """Image with the packages of requirements.lock, as launch/container/Dockerfile builds it; this
    program is not taken from it."""
    volumes: list[str]
    """Persistent volume claims, CLAIM:/PATH or CLAIM:/PATH:ro. The run's folder, with this job's
    config and code, is below one of the paths, on this machine as in the pods."""
    nodes: PositiveInt = 1
    """Pods, each on a node of its own."""
    gpus_per_node: NonNegativeInt = 8
    """GPUs of each pod, with a process for each unless the run's parallel.nproc_per_node says
    otherwise; 0: none."""
    gpu_resource: str = "nvidia.com/gpu"
    """What the cluster calls a GPU."""
    resources: list[str] = field(default_factory=list)
    """Other resources of each pod, NAME=QUANTITY, as in
    resources="['cpu=96','memory=1000Gi','rdma/ib=8']"."""
    shared_memory: str = "64Gi"
    """Limit of /dev/shm, which counts as memory of the pod."""
    namespace: str | None = None
    """Namespace; null: that of kubectl's context."""
    queue: str | None = None
    """Kueue's local queue; null: the job starts at once or waits for its pods."""
    priority_class: str | None = None
    """Priority class of the pods."""
    node_selector: list[str] = field(default_factory=list)
    """Labels of the nodes, KEY=VALUE, as in node_selector="['pool=h100']"."""
    tolerations: list[str] = field(default_factory=list)
    """Taints that do not matter, KEY, KEY=VALUE or KEY=VALUE:EFFECT."""
    env: list[str] = field(default_factory=list)
    """Variables of the pods, NAME=VALUE: in the manifest for all to read, so no secrets."""
    secrets: list[str] = field(default_factory=list)
    """Secrets whose keys are variables of the pods, such as WANDB_API_KEY and AWS_ACCESS_KEY_ID."""
    pull_secrets: list[str] = field(default_factory=list)
    """Secrets with which the image is pulled."""
    run_as: NonNegativeInt | None = None
    """User and group number of the processes; null: the image's."""
    grace_s: PositiveInt = 180
    """Seconds that a pod gets to save when it is to go."""
    max_restarts: NonNegativeInt = 100
    """How often all pods are started again by themselves."""
    setup: str = ""
    """Shell command in each pod before the processes start, such as `export NCCL_IB_HCA=mlx5`."""
    python: str = "python"
    """Interpreter in the image."""


def job_name(run_dir: Path) -> str:
    """Return the name of a run's JobSet: one run has one at a time."""
    slug = re.sub(r"[^a-z0-9]+", "-", run_dir.name.lower())[:30].strip("-") or "run"
    return f"lc-{slug}-{hashlib.sha256(bytes(run_dir)).hexdigest()[:8]}"


def rendezvous(job: KubernetesConfig, name: str) -> str | None:
    """Return where the pods of a JobSet meet; None: there is one."""
    return f"{name}-{_PODS}-0-0.{name}:{_PORT}" if job.nodes > 1 else None


def check_job(job: KubernetesConfig) -> None:
    """Raise InputError for a secret in the manifest, and with all that has another form than
    Kubernetes reads."""
    fix = "kubectl create secret generic NAME --from-literal={name}=..., and secrets=[NAME]"
    if exposed := list(check_settings({"env": job.env, "setup": [job.setup]}, fix)):
        raise InputError(exposed)
    problems = [
        Problem(f"{name}={value}", f"each is {form}", f"{name}={example}")
        for name, form, example, pattern in _FORMS
        for value in getattr(job, name)
        if not re.fullmatch(pattern, value)
    ]
    if not job.image.strip():
        problems.append(Problem("image=", "pods run an image", "image=REGISTRY/loopcoder:TAG"))
    if problems:
        raise InputError(problems)


def check_paths(job: KubernetesConfig, paths: Mapping[str, Path]) -> None:
    """Raise InputError for folders, by field, that a pod would lose with all that it writes."""
    writable = [Path(v.split(":")[1]) for v in job.volumes if not v.endswith(":ro")]
    problems = [
        Problem(
            f"{key}={path}, and volumes={job.volumes}",
            "it is below no volume that the pods may write to: each would lose its own",
            f"{key}={writable[0] if writable else '/PATH'}/...",
        )
        for key, path in paths.items()
        if not any(Path(os.path.normpath(path)).is_relative_to(p) for p in writable)
    ]
    if problems:
        raise InputError(problems)


_FORMS = [
    ("volumes", "CLAIM:/PATH or CLAIM:/PATH:ro", "['shared:/shared']", rf"{_NAME}:/[^:]+(:ro)?"),
    ("resources", "NAME=QUANTITY", "['cpu=96']", r"[-\w./]+=[\w.]+"),
    ("node_selector", "KEY=VALUE", "['pool=h100']", r"[-\w./]+=[-\w.]*"),
    (
        "tolerations",
        "KEY, KEY=VALUE or KEY=VALUE:EFFECT",
        "['gpu=true:NoSchedule']",
        r"[-\w./]+(=[-\w.]*)?(:\w+)?",
    ),
    ("env", "NAME=VALUE", "['NCCL_DEBUG=WARN']", r"(?s)[A-Za-z_]\w*=.*"),
    ("secrets", "the name of a Secret", "[wandb]", r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?"),
    ("pull_secrets", "the name of a Secret", "[registry]", r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?"),
]
"""Fields with a form: in words, by an example, as a pattern."""


def job_set(
    job: KubernetesConfig,
    *,
    name: str,
    code: Path,
    config: Path,
    config_sha256: str,
    asked: Sequence[str],
) -> dict[str, Any]:
    """Return the manifest of a job.

    Args:
        job: What it asks for.
        name: Of the JobSet, by `job_name`.
        code: Copy of this program.
        config: The finished config.
        config_sha256: Of that file.
        asked: The overrides, for the record of the run.
    """
    variables = {
        "PYTHONPATH": str(code),
        "PYTHONSAFEPATH": "1",
        CONFIG_VARIABLE: str(config),
        HASH_VARIABLE: config_sha256,
        OVERRIDES_VARIABLE: shlex.join(asked),
    }
    labels = {"app.kubernetes.io/name": "loopcoder", "loopcoder/run": name}
    queue = {} if job.queue is None else {"kueue.x-k8s.io/queue-name": job.queue}
    on_exit = {"containerName": _CONTAINER, "operator": "In", "values": _FINAL}
    of_job = {
        "completions": job.nodes,
        "parallelism": job.nodes,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": on_exit}]},
        "template": {"metadata": {"labels": labels}, "spec": _pod(job, name, variables)},
    }
    metadata = {
        "name": name,
        "namespace": job.namespace,
        "labels": labels | queue,
        "annotations": {"loopcoder/config-sha256": config_sha256, "loopcoder/code": str(code)},
    }
    is_final = {
        "name": "final",
        "action": "FailJobSet",
        "onJobFailureReasons": ["PodFailurePolicy"],
    }
    found: dict[str, Any] = _without_nothing(
        {
            "apiVersion": "jobset.x-k8s.io/v1alpha2",
            "kind": "JobSet",
            "metadata": metadata,
            "spec": {
                "network": {"enableDNSHostnames": True, "subdomain": name},
                "failurePolicy": {"maxRestarts": job.max_restarts, "rules": [is_final]},
                "replicatedJobs": [{"name": _PODS, "replicas": 1, "template": {"spec": of_job}}],
            },
        }
    )
    return found


def _pod(job: KubernetesConfig, run: str, variables: dict[str, str]) -> dict[str, Any]:
    env = [{"name": key, "value": value} for key, value in variables.items()]
    env += [{"name": k, "value": v} for k, _, v in (e.partition("=") for e in job.env)]
    limits = dict(resource.split("=", 1) for resource in job.resources)
    if job.gpus_per_node:
        limits[job.gpu_resource] = str(job.gpus_per_node)
    mounts: list[dict[str, Any]] = [{"name": "shm", "mountPath": "/dev/shm"}]
    shm = {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": job.shared_memory}}
    volumes: list[dict[str, Any]] = [shm]
    for index, volume in enumerate(job.volumes):
        claim, path, *read_only = volume.split(":")
        name = f"volume-{index}"
        volumes.append({"name": name, "persistentVolumeClaim": {"claimName": claim}})
        mounts.append({"name": name, "mountPath": path, "readOnly": bool(read_only) or None})
    container = {
        "name": _CONTAINER,
        "image": job.image,
        "command": ["/bin/bash", "-c", _script(job, run)],
        "env": env,
        "envFrom": [{"secretRef": {"name": secret}} for secret in job.secrets],
        "resources": {"limits": limits, "requests": limits} if limits else None,
        "volumeMounts": mounts,
    }
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": job.grace_s,
        "priorityClassName": job.priority_class,
        "nodeSelector": dict(label.split("=", 1) for label in job.node_selector),
        "tolerations": [_toleration(text) for text in job.tolerations],
        "imagePullSecrets": [{"name": secret} for secret in job.pull_secrets],
        "securityContext": dict.fromkeys(("runAsUser", "runAsGroup", "fsGroup"), job.run_as),
        "affinity": _on_other_nodes(run) if job.nodes > 1 else None,
        "containers": [container],
        "volumes": volumes,
    }


def _on_other_nodes(name: str) -> dict[str, Any]:
    """Return that no two pods of a job share a node."""
    selector = {"matchLabels": {"loopcoder/run": name}}
    term = {"labelSelector": selector, "topologyKey": "kubernetes.io/hostname"}
    return {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}


def _toleration(text: str) -> dict[str, str]:
    rest, _, effect = text.partition(":")
    key, equals, value = rest.partition("=")
    found = {"key": key, "operator": "Equal" if equals else "Exists"}
    if equals:
        found["value"] = value
    return found | ({"effect": effect} if effect else {})


def _script(job: KubernetesConfig, name: str) -> str:
    """Return what a pod runs. Python takes the place of the shell, so that signals reach it."""
    lines = []
    if job.setup:
        lines.append(
            f"{{\n{job.setup}\n}} || {{ code=$?; "
            f'echo "loopcoder: setup= of this job ended with $code" >&2; exit {EXIT_BAD_INPUT}; }}'
        )
    if (where := rendezvous(job, name)) is not None:
        host = where.partition(":")[0]
        lines.append(
            "# names are known some seconds after the pods are there\n"
            f"for _ in $(seq 300); do getent hosts {host} > /dev/null && break; sleep 1; done"
        )
    lines.append(f"exec {shlex.quote(job.python)} -m loopcoder train")
    return "\n".join(lines) + "\n"


def _without_nothing(found: Any) -> Any:
    """Leave out fields without a value."""
    if isinstance(found, dict):
        inner = {key: _without_nothing(value) for key, value in found.items()}
        return {key: value for key, value in inner.items() if value not in (None, {}, [])}
    if isinstance(found, list):
        return [_without_nothing(value) for value in found]
    return found


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Writes texts of several lines as such."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def to_manifest(found: dict[str, Any]) -> str:
    """Write a manifest as YAML."""
    text: str = yaml.dump(found, Dumper=_Dumper, sort_keys=False, width=1000)
    return text

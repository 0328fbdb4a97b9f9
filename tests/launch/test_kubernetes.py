"""The manifest of a job: valid by the published schemas, whole, and what its pods run."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch import snapshot
from launch.jobs import jobs_in
from launch.kubernetes import KubernetesConfig, check_job, job_name, job_set
from loopcoder.cli.main import main
from loopcoder.config.compose import load_config
from loopcoder.errors import InputError
from loopcoder.metrics.writer import read_metrics
from tests.cli.conftest import alone
from tests.nodes import cannot_make, nodes
from tests.train.conftest import SMALL

__all__ = ["alone"]


def job(**fields: Any) -> KubernetesConfig:
    return KubernetesConfig(**({"image": "registry/loopcoder:1", "volumes": ["a:/a"]} | fields))


def manifest(asked: KubernetesConfig) -> dict[str, Any]:
    return job_set(
        asked, name=job_name(Path("/a/My run")), code=Path("/a/code"), config=Path("/a/c.yaml"),
        config_sha256="5" * 64, asked=["model=plt_1b", "name=two words"],
    )  # fmt: skip


EVERYTHING = job(
    volumes=["a:/a", "b.c:/b/c:ro"],
    nodes=4,
    resources=["cpu=96", "memory=1000Gi", "rdma/ib=8"],
    namespace="team",
    queue="nightly",
    priority_class="high",
    node_selector=["pool=h100", "cloud/zone=a-1"],
    tolerations=["gpu", "spot=true", "spot=true:NoSchedule", "gone:NoExecute"],
    env=["NCCL_DEBUG=WARN", "EMPTY=", "EQUALS=a=b\nc"],
    secrets=["wandb", "s3.keys"],
    pull_secrets=["registry"],
    run_as=1000,
    setup="export A=1\nmodule load cuda",
)


def differences(document: dict[str, Any]) -> bool:
    """Say whether a document is not one of the published schema: its reader drops what it does not
    know."""
    api = pytest.importorskip("kubeflow_trainer_api.models")
    read = api.JobsetV1alpha2JobSet.from_dict(document)
    return bool(read.to_dict() != document)


@pytest.mark.parametrize("asked", [job(), job(nodes=8), job(gpus_per_node=0), EVERYTHING])
def test_the_schema_takes_it(asked: KubernetesConfig) -> None:
    assert not differences(manifest(asked))


def fields_of(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield where every field with a name of the schema is."""
    free = {"labels", "annotations", "limits", "requests", "nodeSelector", "matchLabels"}
    items: Any = enumerate(document) if isinstance(document, list) else ()
    if isinstance(document, dict):
        items = document.items()
        yield from ((*path, key) for key in document)
    for key, value in items:
        if key not in free:
            yield from fields_of(value, (*path, key))


def test_the_schema_finds_every_misspelt_field() -> None:
    pydantic = pytest.importorskip("pydantic")
    whole = manifest(EVERYTHING)
    found = list(fields_of(whole))
    assert len(found) > 80
    for *above, name in found:
        document = yaml.safe_load(yaml.safe_dump(whole))
        inner = document
        for key in above:
            inner = inner[key]
        inner[f"{name}s"] = inner.pop(name)
        with suppress(pydantic.ValidationError):  # a field that has to be there
            assert differences(document), (above, name)


def test_what_is_asked_for_is_there() -> None:
    whole = manifest(EVERYTHING)
    (replicated,) = whole["spec"]["replicatedJobs"]
    of_job = replicated["template"]["spec"]
    pod = of_job["template"]["spec"]
    (container,) = pod["containers"]
    assert whole["metadata"]["namespace"] == "team"
    assert whole["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "nightly"
    assert (of_job["completions"], of_job["parallelism"], replicated["replicas"]) == (4, 4, 1)
    assert pod["nodeSelector"] == {"pool": "h100", "cloud/zone": "a-1"}
    assert pod["tolerations"] == [
        {"key": "gpu", "operator": "Exists"},
        {"key": "spot", "operator": "Equal", "value": "true"},
        {"key": "spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"},
        {"key": "gone", "operator": "Exists", "effect": "NoExecute"},
    ]
    assert container["resources"]["limits"] == {
        "cpu": "96", "memory": "1000Gi", "rdma/ib": "8", "nvidia.com/gpu": "8",
    }  # fmt: skip
    mounts = {m["mountPath"]: m.get("readOnly", False) for m in container["volumeMounts"]}
    assert mounts == {"/dev/shm": False, "/a": False, "/b/c": True}
    claims = [v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"][1:]]
    assert claims == ["a", "b.c"]
    env = {e["name"]: e["value"] for e in container["env"]}
    assert env["EMPTY"] == "" and env["EQUALS"] == "a=b\nc"
    assert [e["secretRef"]["name"] for e in container["envFrom"]] == ["wandb", "s3.keys"]
    assert pod["priorityClassName"] == "high" and pod["imagePullSecrets"] == [{"name": "registry"}]
    assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"] == 1000
    # what ends the job for good, and what starts it again
    (rule,) = of_job["podFailurePolicy"]["rules"]
    assert {3, 76} <= set(rule["onExitCodes"]["values"]) and 75 not in rule["onExitCodes"]["values"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert pod["restartPolicy"] == "Never" and of_job["backoffLimit"] == 0


def test_names_are_names_of_hosts(rng: random.Random) -> None:
    for _ in range(200):
        characters = [chr(rng.choice([rng.randint(33, 126), rng.randint(0xC0, 0x3FF)]))]
        text = "".join(characters * rng.randint(1, 90)).replace("/", "-")
        name = job_name(Path("/a", text))
        assert len(f"{name}-node-0-{10**4}") <= 63
        assert name.encode().isascii() and name == name.lower() and name.strip("-") == name


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"volumes": ["a"]}, "volumes=a"),
        ({"volumes": ["A:/a"]}, "volumes=A:/a"),
        ({"volumes": ["a:a"]}, "volumes=a:a"),
        ({"resources": ["cpu"]}, "resources=cpu"),
        ({"env": ["1A=b"]}, "env=1A=b"),
        ({"secrets": ["KEY=value"]}, "secrets=KEY=value"),
        ({"tolerations": ["=x"]}, "tolerations==x"),
        ({"image": " "}, "image="),
    ],
)
def test_other_forms_are_refused(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        check_job(job(**fields))


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for the command of Kubernetes, and knows one name from then on."""
    monkeypatch.setattr(snapshot, "_files", lambda: iter([("loopcoder/x.py", Path(__file__))]))
    command = tmp_path / "bin" / "kubectl"
    command.parent.mkdir()
    command.write_text(
        f'#!/bin/sh\n[ "$1 $2" = "get jobset" ] && exec cat {tmp_path}/status\n'
        '[ "$1 $2" = "get jobsets" ] && echo \'{"items": []}\' && exit\n'
        '[ "$1 $2" = "create -f" ] || exit 9\n'
        f"[ -e {tmp_path}/known ] && echo AlreadyExists >&2 && exit 1\n"
        f'cp "$3" {tmp_path}/known; echo jobset.jobset.x-k8s.io/NAME created\n'
    )
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(command.parent), prepend=os.pathsep)
    return command


def command_of(tmp_path: Path, *changed: str) -> list[str]:
    before = ["image=x", f"volumes=['shared:{tmp_path}']", "nodes=2", "gpus_per_node=0"]
    run = [f"run_dir={tmp_path}/run", f"data.build.cache_dir={tmp_path}/cache"]
    run += ["parallel.nproc_per_node=1", "train.micro_batch_size=1"]
    return ["launch", "kubernetes", *before, "train", *run, *changed]


def test_a_job_is_created_once(
    kubectl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command_of(tmp_path)) == 0
    printed = capsys.readouterr().out
    assert "created" in printed
    folder = Path(printed.split()[-1])
    created = yaml.safe_load((tmp_path / "known").read_text())
    assert not differences(created)
    env = created["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    values = {e["name"]: e["value"] for e in env["containers"][0]["env"]}
    assert values["LOOPCODER_CONFIG"] == str(folder / "config.yaml")
    config = load_config(folder / "config.yaml")
    host, _, port = (config.parallel.rendezvous or "").partition(":")
    name = created["metadata"]["name"]
    assert (config.parallel.nodes, host) == (2, f"{name}-node-0-0.{name}") and port.isdigit()
    before = (folder / "jobset.yaml").read_bytes()
    for status, says in (
        ("", "AlreadyExists"),  # a cluster that takes jobs and lists none
        ("{}", f"JobSet {name} of this run waits or runs"),
        ('{"terminalState": "Failed"}', "is there, and has ended: Failed"),
    ):
        found = f'{{"kind": "JobSet", "status": {status}}}' if status else ""
        (tmp_path / "status").write_text(found)
        assert main(command_of(tmp_path)) == 3
        said = capsys.readouterr().err
        assert says in said and "kubectl delete jobset" in said
        assert (folder / "jobset.yaml").read_bytes() == before
    assert [job.id for job in jobs_in(folder)] == [name]
    # of another config, which Kubernetes does not take either, nothing is left
    (tmp_path / "status").write_text("")
    assert main(command_of(tmp_path, "seed=5")) == 3
    assert list((tmp_path / "run").iterdir()) == [folder]


def test_a_manifest_has_no_secrets(kubectl: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secret = f"{random.getrandbits(60):x}1x"
    for setting in (f"env=['HF_TOKEN={secret}']", f"setup='export WANDB_API_KEY={secret}'"):
        for mode in ([], ["--dry-run"]):
            argv = command_of(Path.cwd())
            assert main([*argv[:2], *mode, setting, *argv[2:]]) == 3
            captured = capsys.readouterr()
            assert secret not in captured.out + captured.err
            assert "kubectl create secret generic" in captured.err


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (["run_dir=/elsewhere/run"], "run_dir=/elsewhere/run"),
        (["data.build.cache_dir=/elsewhere"], "data.build.cache_dir=/elsewhere"),
        (["run_dir={}/../run"], "it is below no volume"),
        (["parallel.nodes=3"], "parallel.nodes=3"),
        (["parallel.rendezvous=host:1"], "parallel.rendezvous=host:1"),
        (["parallel.tp=3"], "parallel.tp=3"),
    ],
)
def test_what_could_not_run_is_not_created(
    kubectl: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changed: list[str],
    named: str,
) -> None:
    assert main(command_of(tmp_path, *(text.format(tmp_path) for text in changed))) == 3
    assert named in capsys.readouterr().err
    assert not (tmp_path / "known").exists() and not (tmp_path / "run").exists()


def test_without_kubectl_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(command_of(tmp_path)) == 3
    assert "there is no kubectl here" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


TWO = pytest.mark.skipif(cannot_make() is not None, reason=cannot_make() or "")


@pytest.mark.dist_full
@pytest.mark.parametrize("pods", [1, pytest.param(2, marks=TWO)])
def test_its_pods_train(pods: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command and the variables of the manifest, in processes that stand for pods."""
    files = tmp_path / "documents"
    for domain in ("text", "code"):
        (files / domain).mkdir(parents=True)
    for k in range(10):
        lines = "\n".join(f"value_{i} = {i * 7919 % (1000 + k)}" for i in range(k, k + 500))
        (files / "text" / f"{k}.txt").write_text(lines.replace("_", " "))
        (files / "code" / f"{k}.py").write_text(lines)
    run = [*SMALL, f"path={files}", "train.max_steps=3", "train.micro_batch_size=1"]
    run = [o for o in run if not o.startswith("parallel.nproc_per_node")]
    argv = command_of(tmp_path, *run)
    argv[argv.index("nodes=2")] = f"nodes={pods}"
    argv.insert(2, "--dry-run")
    argv.insert(3, f"python={sys.executable}")
    argv.insert(3, "setup='export A_SETUP=1'")
    assert main(argv) == 0
    shown = capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    argv.remove("--dry-run")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "kubectl").write_text("#!/bin/sh\necho created\n")
    (tmp_path / "bin" / "kubectl").chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
        assert main(argv) == 0
    folder = Path(capsys.readouterr().out.split()[-1])
    assert shown.partition("\n")[2].startswith((folder / "jobset.yaml").read_text())
    spec = yaml.safe_load(shown)["spec"]["replicatedJobs"][0]["template"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    environ |= {e["name"]: e["value"] for e in container["env"]}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with ExitStack() as held:
        if pods == 1:
            processes = [subprocess.Popen(container["command"], env=environ, cwd="/", **pipes)]
        else:
            host = load_config(folder / "config.yaml").parallel.rendezvous or ""
            machines = held.enter_context(nodes(pods))
            names = tmp_path / "hosts"
            names.write_text(f"{machines[0].address} {host.partition(':')[0]}\n")
            known = ["sh", "-ec", f'mount --bind {names} /etc/hosts; exec "$@"', "sh"]
            command = [*known, *container["command"]]
            processes = [m.start(command, environ, Path("/")) for m in machines]
        for process in processes:
            held.callback(process.kill)
        assert len(processes) == spec["parallelism"]
        outputs = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * pods, "\n".join(outputs)
    assert [m["step"] for m in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3]
    assert f"path={files}" in outputs[0].partition("asked for")[2].partition("\n")[0]
    config = load_config(tmp_path / "run" / "config.yaml")
    assert config.parallel.nodes == pods

"""What a job gets of the environment of the shell that submits it: names, never values."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence

from loopcoder.errors import Problem
from loopcoder.storage.secrets import assigned_secrets, secret_names

FILE = "environment.txt"
"""In the folder of a job."""
_MODULES = "LOADEDMODULES"
"""Of Environment Modules and Lmod: what is loaded, separated by colons."""
_DECIDES = re.compile(
    r"(CUDA|NCCL|GLOO|UCX|FI|IBV|OMP|MKL|TORCH|PYTORCH|TORCHINDUCTOR|TRITON|NVTE|LOOPCODER|HF|WANDB"
    r"|FSSPEC|AWS|GOOGLE|AZURE|RAY|SLURM|SBATCH|SRUN)_\w+|(PYTHON|LD_)\w+|(?i:\w+_proxy)"
    r"|PATH|HOME|TMPDIR|MASTER_ADDR"
)
"""Variables that this program, its libraries or Slurm read."""
_SHELL_ONLY = {"_", "SHLVL", "OLDPWD"}


def shell_environment(options: Sequence[str], environ: Mapping[str, str]) -> str:
    """Return what a job of Slurm gets of this shell, by groups, one name once.

    Args:
        options: Those that sbatch is given besides ours; `--export` among them decides.
        environ: Of this shell.
    """
    exported = _exported(options, environ)
    names = {name for name in environ if exported is None or name in exported} - _SHELL_ONLY
    secrets = [name for name in secret_names(environ) if name in names]
    deciding = sorted(name for name in names if _DECIDES.fullmatch(name))
    groups = {
        "modules": [m for m in environ.get(_MODULES, "").split(":") if m],
        "secrets": secrets,
        "read by programs": [name for name in deciding if name not in secrets],
        "others": sorted(names - {*secrets, *deciding}),
    }
    what = "all" if exported is None else "what --export names"
    heading = f"Of this shell's environment the job gets {what}; values are not written down."
    return _text(heading, groups)


def pod_environment(env: Sequence[str], secrets: Sequence[str]) -> str:
    """Return what the pods of a job get besides the image's environment.

    Args:
        env: NAME=VALUE.
        secrets: Names of Secrets.
    """
    heading = "The pods get these besides the image's environment, and nothing of this shell."
    groups = {"variables": [one.partition("=")[0] for one in env], "keys of": list(secrets)}
    return _text(heading, groups)


def check_settings(settings: Mapping[str, Sequence[str]], fix: str) -> Iterator[Problem]:
    """Yield the settings of a job, by name, that set a variable with a secret to a value: they are
    in the job's folder for all to read."""
    for setting, texts in settings.items():
        for name in dict.fromkeys(name for text in texts for name in assigned_secrets(text)):
            yield Problem(
                f"{setting}= sets {name}",
                "its name says that it is a secret, and the job's file has it for all to read",
                fix.format(name=name),
            )


def _exported(options: Sequence[str], environ: Mapping[str, str]) -> set[str] | None:
    """Return the variables that sbatch passes on; None: all."""
    given = [option.partition("=")[2] for option in options if option.startswith("--export=")]
    asked = (given or [environ.get("SBATCH_EXPORT", "ALL")])[-1].strip("'\"").split(",")
    if "ALL" in asked:
        return None
    names = set() if asked in (["NONE"], ["NIL"]) else {one.partition("=")[0] for one in asked}
    return names | {name for name in environ if name.startswith("SLURM_")}


def _text(heading: str, groups: Mapping[str, Sequence[str]]) -> str:
    lines = [heading]
    for group, names in groups.items():
        listed = ", ".join(names) or "none"
        lines += textwrap.wrap(f"{group}: {listed}", 100, subsequent_indent="    ")
    return "\n".join(lines) + "\n"

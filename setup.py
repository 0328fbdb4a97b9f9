"""What pyproject.toml cannot say: conf/ is installed as loopcoder/conf, and the CUDA extension.

The presets stand at the root of the repository, where a reader looks for them, and an installed
package has no root; setuptools maps a folder to a package only for packages that are listed here.

The extension (kernels/ -> loopcoder/_kernels.so) is built where torch and nvcc are, which means
`pip install --no-build-isolation`, and left out elsewhere: `loopcoder doctor` says which it is.
LOOPCODER_BUILD_KERNELS=1 makes a missing compiler an error, =0 leaves the extension out.
"""

import json
import os
import re
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.editable_wheel import editable_wheel

ROOT = Path(__file__).parent
SOURCES = [
    "ops.cpp",
    "decode_ops.cpp",
    "decode_gemv.cu",
    "decode_attention.cu",
    "gated_window_forward.cu",
    "gated_window_backward.cu",
    "gated_window_backward_sm90.cu",
    "gate_logits.cu",
    "loop_input.cu",
]
ARCHITECTURES = ("80", "90a")


class Editable(editable_wheel):
    """Puts this folder on the path, where conf/ is found too, and not a finder of modules: Python
    asks such finders last, after it has taken a clone called loopcoder beside the working directory
    for a package without files."""

    def finalize_options(self):
        self.distribution.packages.remove("loopcoder.conf")
        self.distribution.package_dir = {"": "."}
        super().finalize_options()


def extension():
    """Return setup()'s arguments for the extension; nothing where it cannot be built."""
    wanted = os.environ.get("LOOPCODER_BUILD_KERNELS", "auto")
    if wanted == "0":
        return {}
    missing = find_toolkit()
    if missing is not None:
        if wanted == "1":
            raise SystemExit(f"LOOPCODER_BUILD_KERNELS=1, but {missing}")
        print(f"loopcoder: the CUDA kernels are not built: {missing}", file=sys.stderr)
        return {}
    import torch
    from torch.utils import cpp_extension

    sys.path.insert(0, str(ROOT))  # not where the build is isolated
    from loopcoder.backends import sources_digest

    class Build(cpp_extension.BuildExtension):
        def run(self):
            sources = sources_digest(ROOT / "kernels")  # before they can change under the compiler
            with ninja_in_brief():
                super().run()
            library = Path(self.get_ext_fullpath("loopcoder._kernels"))
            about = {
                "torch": torch.__version__,
                "architectures": [f"sm_{a}" for a in ARCHITECTURES],
                "sources": sources,
            }
            library.with_name("_kernels.json").write_text(json.dumps(about) + "\n")

    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES]
    targets.append("-gencode=arch=compute_90,code=compute_90")  # newer GPUs compile it themselves
    module = cpp_extension.CUDAExtension(
        "loopcoder._kernels",
        # relative, as setuptools wants them
        [f"kernels/{name}" for name in SOURCES],
        include_dirs=[str(ROOT / "kernels")],
        extra_compile_args={"cxx": ["-O2"], "nvcc": ["-O3", "-lineinfo", *targets]},
        depends=[str(path) for path in (ROOT / "kernels").glob("*.*h")],
    )
    # without torch_python, since there are only operators in it; libcudart without its version's
    # number is missing among wheels
    module.libraries = ["c10", "torch", "torch_cpu", "c10_cuda"]
    module.extra_link_args = [
        str(cuda_runtimes(cpp_extension.CUDA_HOME)[0]),
        # where the compiler brings it as an archive only, torch's libstdc++ must not take turns
        # with it: numbers in messages of errors would crash
        "-Wl,--exclude-libs,libstdc++.a",
    ]
    return {
        "ext_modules": [module],
        "cmdclass": {
            "build_ext": Build.with_options(no_python_abi_suffix=True),
            "editable_wheel": Editable,
        },
    }


@contextmanager
def ninja_in_brief():
    """Print `[1/6] gate_logits.cu` where torch's ninja prints a whole command."""
    sys.stdout.flush()
    stdout, (reading, writing) = os.dup(1), os.pipe()
    os.dup2(writing, 1)
    os.close(writing)

    def shorten():
        with open(reading, errors="replace") as lines, open(stdout, "w", closefd=False) as shown:
            for line in lines:
                command = re.match(r"(\[\d+/\d+\]) .* -c \S*?([\w.]+\.(?:cu|cpp)) ", line)
                print(
                    " ".join(command.groups()) if command else line.rstrip(), file=shown, flush=True
                )

    thread = threading.Thread(target=shorten)
    thread.start()
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(stdout, 1)  # the last that held the pipe open
        thread.join()
        os.close(stdout)


def find_toolkit():
    """Point CUDA_HOME to an nvcc that fits torch; return what is missing, None if nothing is."""
    try:
        import torch
    except ImportError:
        return (
            "torch is not in the build environment; "
            "pip install --no-build-isolation builds with the one that is installed"
        )
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    # nvcc as wheels (nvidia-cuda-nvcc) lies beside the libraries that torch depends on
    major = torch.version.cuda.split(".")[0]
    wheels = Path(torch.__file__).parents[1] / "nvidia" / f"cu{major}"
    if "CUDA_HOME" not in os.environ and (wheels / "bin" / "nvcc").exists():
        os.environ["CUDA_HOME"] = str(wheels)
    from torch.utils import cpp_extension

    home = cpp_extension.CUDA_HOME
    if home is None or not (Path(home) / "bin" / "nvcc").exists():
        return f"no nvcc was found (CUDA {torch.version.cuda} is wanted); set CUDA_HOME"
    if not cuda_runtimes(home):
        return f"no libcudart.so was found in {home}; set CUDA_HOME to a whole toolkit"
    return None


def cuda_runtimes(home):
    """Return the libraries libcudart of a toolkit; conda keeps them under targets/."""
    folders = ("lib*", "targets/*/lib*")
    return [p for folder in folders for p in sorted(Path(home).glob(f"{folder}/libcudart.so*"))]


setup(
    **{"cmdclass": {"editable_wheel": Editable}} | extension(),
    packages=[
        *find_packages(include=["loopcoder*", "launch*", "data_pipeline*"]),
        "loopcoder.conf",
    ],
    package_dir={"loopcoder.conf": "conf"},
    package_data={
        "loopcoder.conf": ["**/*.yaml"],
        "loopcoder.chat": ["templates/*.jinja"],
        "data_pipeline.decontam": ["*.npz", "README.md"],
        "data_pipeline.langid": ["linguist.json"],
    },
)

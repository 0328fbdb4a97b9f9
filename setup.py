"""What pyproject.toml cannot say: conf/ is installed as loopcoder/conf.

The presets stand at the root of the repository, where a reader looks for them, and an installed
package has no root; setuptools maps a folder to a package only for packages that are listed here.
The CUDA extension will be built here as well, when kernels/ has sources and nvcc is there; until
then an installation needs no compiler.
"""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["loopcoder*", "launch*", "data_pipeline*"]),
        "loopcoder.conf",
    ],
    package_dir={"loopcoder.conf": "conf"},
    package_data={
        "loopcoder.conf": ["**/*.yaml"],
        "data_pipeline.benchmarks": ["*.npz", "README.md"],
    },
)

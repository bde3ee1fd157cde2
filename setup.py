"""Build: the folders at the root install as one package, with one compiled unit."""

import os

from Cython.Build import cythonize
from setuptools import Extension, find_packages, setup

MAPPED = ("_fastpath", "drivers", "models", "config")


def package_map() -> dict[str, str]:
    """Import name -> folder, derived from what is on disk."""
    folders = {name: name for name in ["rpi_daemon", *(f"rpi_daemon.{p}" for p in find_packages("rpi_daemon"))]}
    folders = {name: name.replace(".", "/") for name in folders}
    for root in MAPPED:
        folders[f"rpi_daemon.{root}"] = root
        for sub in find_packages(root):
            folders[f"rpi_daemon.{root}.{sub}"] = f"{root}/{sub.replace('.', '/')}"
    return folders


core = Extension(
    "rpi_daemon._fastpath.core",
    ["_fastpath/core.pyx"],
    depends=[f"_fastpath/{name}" for name in sorted(os.listdir("_fastpath")) if name.endswith((".pxi", ".h"))],
    extra_compile_args=["-O3", "-std=gnu11", "-Wall", "-Wno-unused-function"],
    libraries=["m", "pthread"],
)

folders = package_map()
setup(
    packages=sorted(folders),
    package_dir=folders,
    ext_modules=cythonize([core], language_level=3, compiler_directives={"boundscheck": False, "wraparound": False}),
)

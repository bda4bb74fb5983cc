"""Puts the configurations, which lie beside the package in a checkout, into the package of a wheel."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

FOLDERS = ("configs", "accelerate_configs")


class BuildWithConfigs(build_py):
    """Builds the package with its configurations; an editable installation finds those of the checkout."""

    def run(self) -> None:
        """Copies what pyproject.toml names, and the folders."""
        super().run()
        if self.editable_mode:
            return
        for name in FOLDERS:
            target = Path(self.build_lib, "t3d", name)
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(Path(__file__).parent / name, target)


setup(cmdclass={"build_py": BuildWithConfigs})

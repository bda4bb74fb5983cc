"""Python and the installed packages, against what pyproject.toml asks for."""

import contextlib
import importlib
import io
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement
from packaging.version import Version

from t3d.doctor.finding import Finding
from t3d.errors import named

NAMED = ("torch", "transformers", "accelerate", "deepspeed")
"""Packages with a line of their own, and tried out; the others share one."""

OPTIONAL = {
    "flash-attn": ("flash_attn", "pip install flash-attn --no-build-isolation"),
    "bitsandbytes": ("bitsandbytes", ""),
}
"""Packages that t3d does not ask for: their modules, and how to install those that it can use.

bitsandbytes is here because transformers and accelerate load it where they find it, and fail with it.
"""


def packages(trains: bool) -> Iterator[Finding]:
    """Python and what t3d needs: installed, of a release that it knows, and loadable.

    Args:
        trains: deepspeed is of use, which takes seconds to load.
    """
    yield Finding("ok", "python", f"{platform.python_version()}, {sys.prefix}")
    try:
        asked = [Requirement(line) for line in requires("t3d") or []]
    except PackageNotFoundError:
        yield Finding("warning", "t3d", "not installed: no versions to compare with", "pip install -e .")
        asked = [Requirement(name) for name in NAMED]
    asked = [one for one in asked if one.marker is None or one.marker.evaluate({"extra": ""})]
    others = [one for one in asked if one.name not in NAMED]
    for one in asked:
        if one.name in NAMED:
            yield _named(one) if trains or one.name != "deepspeed" else release(one)
    bad = [finding for one in others if (finding := release(one)).level != "ok"]
    yield from bad
    if others and not bad:
        yield Finding("ok", "others", f"{len(others)} more packages, all of releases that t3d knows")


def extras(with_cuda: bool) -> Iterator[Finding]:
    """Packages that t3d can do without.

    Args:
        with_cuda: whether flash-attn would be of use.
    """
    for name, (module, install) in OPTIONAL.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            if install and with_cuda:
                yield Finding("warning", name, "not installed: decoding uses PyTorch's own attention", install)
            continue
        failure = why_not_loadable(module)
        if failure is None:
            yield Finding("ok", name, found)
        else:
            cure = f"pip uninstall {name}" + (f"; {install}" if install else "")
            yield Finding("warning", name, f"{found} cannot be loaded: {failure}", cure)


def _named(requirement: Requirement) -> Finding:
    finding = release(requirement)
    if finding.text == "not installed" or (failure := why_not_loadable(requirement.name)) is None:
        return finding
    text = f"{version(requirement.name)} cannot be loaded: {failure}"
    return Finding("error", requirement.name, text, f'pip install --force-reinstall "{requirement}"')


def release(requirement: Requirement) -> Finding:
    """Whether the installed release is one that `requirement` accepts."""
    name, asked = requirement.name, ",".join(sorted(map(str, requirement.specifier), reverse=True))
    try:
        found = version(name)
    except PackageNotFoundError:
        return Finding("error", name, "not installed", f'pip install "{requirement}"')
    if requirement.specifier.contains(found, prereleases=True):
        return Finding("ok", name, f"{found} ({asked})" if asked else found)
    lowest = [Version(one.version) for one in requirement.specifier if one.operator in (">=", "==", "~=")]
    if lowest and Version(found) < max(lowest):
        return Finding("error", name, f"{found}, too old ({asked})", f'pip install "{requirement}"')
    return Finding("warning", name, f"{found}, newer than any that was tried ({asked})", f'pip install "{requirement}"')


def why_not_loadable(module: str) -> str | None:
    """What importing a module raises, in a few words; None if it loads."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            importlib.import_module(module)
    # What a package that does not fit its neighbours raises is anything.
    except Exception as error:  # noqa: BLE001
        return named(error)
    return None

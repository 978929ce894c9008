"""The test suite on each supported Python, and with the oldest supported PyTorch, torchvision and timm.

nox --list                          the sessions
nox                                 all of them; a Python that isn't installed skips its sessions and says so
nox -s tests-3.12                   one of them
nox -s oldest-3.10 -- tests/algebra another; arguments after -- go to pytest
"""

from __future__ import annotations

import nox

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = False
nox.options.reuse_existing_virtualenvs = True

PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PROJECT)
AGED = ("torch", "torchvision", "timm")  # `oldest` installs the oldest versions of these that pyproject.toml allows


def oldest_allowed() -> list[str]:
    """Return a pin for each library in ``AGED``, such as ``torch==2.9.*``."""
    groups = PROJECT["project"]["optional-dependencies"].values()
    lines = [*PROJECT["project"]["dependencies"], *(line for group in groups for line in group)]
    oldest = dict(line.split(">=") for line in lines if ">=" in line)
    return [f"{name}=={oldest[name]}.*" for name in AGED]


def run_tests(session: nox.Session, *pins: str) -> None:
    """Install the project with what its tests need, say which versions came, and run pytest."""
    session.install("-e", ".[dev]", *pins)
    session.run("python", "-m", "tests.versions")
    chosen = session.posargs or ["-n", "2", "--dist", "loadgroup"]
    session.run("pytest", "-q", *chosen, env={"OMP_WAIT_POLICY": "PASSIVE"})


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the suite with the newest libraries."""
    run_tests(session)


@nox.session(python=PYTHONS)
def oldest(session: nox.Session) -> None:
    """Run the suite with the oldest supported PyTorch, torchvision and timm."""
    run_tests(session, *oldest_allowed())

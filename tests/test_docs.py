"""The documentation's examples run, and its links lead somewhere."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

import unbranch

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("page", [p for p in PAGES if ">>>" in p.read_text()], ids=lambda page: page.name)
def test_examples_are_true(page: Path) -> None:
    failures, examples = doctest.testfile(str(page), module_relative=False)
    assert examples > 2
    assert not failures


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = [t for t in re.findall(r"\]\(([^)#]+)", page.read_text()) if "://" not in t]
    assert all((page.parent / target).exists() for target in targets), targets


def test_every_page_is_listed() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    assert all(f"({page.name})" in index for page in (ROOT / "docs").glob("*.md") if page.name != "README.md")


def _named_in(page: Path) -> set[str]:
    text = re.sub(r"https?://\S+", "", page.read_text())
    found = re.findall(r"(?<![\w./@-])(?:unbranch|ub)\.([A-Za-z_][\w.]*\w)", text)
    return {name for name in found if name.rpartition(".")[2] not in FILE_TYPES}


FILE_TYPES = {"safetensors", "pth", "onnx", "yaml", "json", "md"}


@pytest.mark.parametrize("page", [p for p in PAGES if _named_in(p)], ids=lambda page: page.name)
def test_names_exist(page: Path) -> None:
    """``import unbranch`` is enough for every name that a page gives."""
    missing = []
    for name in sorted(_named_in(page)):
        value: object = unbranch
        for part in name.split("."):
            value = getattr(value, part, None)
        if value is None:
            missing.append(name)
    assert not missing


FENCE = re.compile(r"^```python\n(.*?)^```\n(\s*<!-- not run: [^\n]+ -->)?", re.MULTILINE | re.DOTALL)
GUIDES = sorted([ROOT / "docs" / "start.md", *(ROOT / "docs" / "howto").glob("*.md")])


@pytest.mark.slow
@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_code_of_a_guide_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Block by block, in one namespace; a block that isn't run says why."""
    monkeypatch.chdir(tmp_path)
    ran = 0
    scope: dict[str, object] = {"__name__": page.stem}
    for code, excuse in FENCE.findall(page.read_text()):
        if not excuse:
            exec(compile(code, str(page), "exec"), scope)
            ran += 1
    assert ran

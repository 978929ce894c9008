"""The documentation's examples run, its commands parse, and its links and names exist."""

from __future__ import annotations

import doctest
import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

import unbranch
from unbranch.cli import app
from unbranch.models import list_models
from unbranch.runtimes.targets import find_targets
from unbranch.train import load_recipe

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])


def _id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def every(*pages: Path) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", pages, ids=_id)


@every(*(p for p in PAGES if ">>>" in p.read_text()))
def test_examples_are_true(page: Path) -> None:
    failures, examples = doctest.testfile(str(page), module_relative=False)
    assert examples > 2
    assert not failures


# Links and names


@every(*PAGES)
def test_links_lead_somewhere(page: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)", page.read_text()) if "://" not in link]
    for link in links:
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target), link


def _anchors(page: Path) -> set[str]:
    """The anchors that GitHub and the site give to headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def test_every_page_is_listed() -> None:
    index, navigation = (DOCS / "README.md").read_text(), (ROOT / "mkdocs.yml").read_text()
    for page in sorted(DOCS.rglob("*.md")):
        name = str(page.relative_to(DOCS))
        assert f": {name}\n" in navigation, name
        assert f"({name})" in index or name == "README.md", name


def _named_in(page: Path) -> set[str]:
    text = re.sub(r"https?://\S+", "", page.read_text())
    text = re.sub(DEPRECATED, "", text, flags=re.DOTALL)
    text = re.sub(r"^::: .*", "", text, flags=re.MULTILINE)  # mkdocs resolves these, to modules where names are shared
    found = re.findall(r"(?<![\w./@-])(?:unbranch|ub)\.([A-Za-z_][\w.]*\w)", text)
    return {name for name in found if name.rpartition(".")[2] not in FILE_TYPES}


DEPRECATED = r"\n### Deprecated\n.*?(?=\n##)"
FILE_TYPES = {"safetensors", "pth", "onnx", "yaml", "json", "md"}


@every(*(p for p in PAGES if _named_in(p)))
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


def test_every_public_name_is_in_the_reference() -> None:
    text = "".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))
    modules = {"blocks", "deploy", "onnx", "prune", "quantize", "train"}
    listed = set(re.findall(r"^(?:::: |      heading: )(\S+)", text, re.MULTILINE))
    assert {f"unbranch.{name}" for name in modules} <= listed
    errors = set(vars(unbranch.errors))
    names = [n for n in unbranch.__all__ if n not in modules | errors | {"__version__"}]
    assert [n for n in names if f"unbranch.{n}" not in listed] == []


def _deprecated() -> list[tuple[str, str]]:
    """Old and new dotted names of the changelog's table."""
    section = re.search(DEPRECATED, (ROOT / "CHANGELOG.md").read_text(), re.DOTALL)
    assert section
    rows = [line.strip("| ").split(" | ") for line in section[0].splitlines() if line.startswith("| `unbranch.")]
    dotted = r"`(unbranch\.[\w.]+)"
    return [(old, re.findall(dotted, new)[0]) for before, new in rows for old in re.findall(dotted, before)]


@pytest.mark.parametrize(("old", "new"), _deprecated())
def test_deprecated_names_are_the_new_ones(old: str, new: str) -> None:
    if old == "unbranch.train_cheaper":  # it has other arguments, and warns when it is called
        return
    with pytest.warns(DeprecationWarning, match=f"`{old}` is deprecated"):
        assert _resolve(old) is _resolve(new)


def _resolve(name: str) -> object:
    module, _, last = name.rpartition(".")
    return getattr(importlib.import_module(module), last)


def test_every_deprecated_name_is_in_the_changelog() -> None:
    found = []
    for path in (ROOT / "src").rglob("*.py"):
        for call in re.findall(r"renamed_names\(\s*__name__,\s*\{(.*?)\}", path.read_text(), re.DOTALL):
            module = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")
            found += [f"{module}.{old}" for old in re.findall(r'"(\w+)":', call)]
    assert len(found) > 40
    assert sorted(set(found) - {old for old, _ in _deprecated()}) == []


# Code

FENCE = re.compile(r"^```python\n(.*?)^```\n(?:\s*<!-- not run: ([^\n]+) -->)?", re.MULTILINE | re.DOTALL)


def _programs(page: Path) -> list[str]:
    """Blocks of a page that run; the others are doctests, or say why they don't run."""
    return [code for code, reason in FENCE.findall(page.read_text()) if not reason and ">>>" not in code]


@pytest.mark.slow
@every(*(p for p in PAGES if _programs(p)))
def test_code_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Block by block, in one namespace and an empty directory."""
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {"__name__": page.stem}
    for code in _programs(page):
        exec(compile(code, str(page), "exec"), scope)


# Commands


def _commands(page: Path) -> list[str]:
    """Lines of code blocks, indented or fenced, with continued lines joined."""
    text = re.sub(r" \\\n\s*", " ", page.read_text())
    fenced = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^    (\S.*)$", rest, re.MULTILINE)
    return [line.strip() for line in (*"\n".join(fenced).splitlines(), *indented) if line.strip()]


def _of(program: str) -> list[tuple[Path, str]]:
    return [(page, line) for page in PAGES for line in _commands(page) if re.search(program, line)]


def _arguments(line: str) -> list[str]:
    """Arguments of ``unbranch`` in a line, without comments, redirections and places for more."""
    words = shlex.split(line.partition(" #")[0].partition(" >")[0].replace(" …", ""))
    start = next(i for i, word in enumerate(words) if word in ("unbranch", "unbranch.cli"))
    return words[start + 1 :]


def test_commands_are_found() -> None:
    assert len(_of(COMMAND)) > 30
    assert len(_of(r"^make ")) > 3
    assert len(_of(r"^pip install ")) > 0


COMMAND = r"^unbranch |-m unbranch\.cli "


@pytest.mark.parametrize(("page", "line"), [pytest.param(p, c, id=f"{_id(p)}: {c[:60]}") for p, c in _of(COMMAND)])
def test_commands_are_accepted(page: Path, line: str) -> None:
    """Options exist, required ones are there, settings are of the recipe, networks of the zoo have its names."""
    name, *arguments = _arguments(line)
    command: Any = typer.main.get_command(app)
    with command.commands[name].make_context(name, list(arguments)) as context:
        given = context.params
    if name in ("train", "recipes", "prune"):
        _check_settings(given)
    if name == "deploy":
        find_targets(given["to"])
    if name not in ("demo", "models", "recipes", "train", "benchmark"):
        network = arguments[0]
        if name == "deploy" and network.startswith("runs/"):  # the directory of a run
            return
        assert re.search(r"[:.]", network) or list_models(network), network


def _check_settings(given: dict[str, object]) -> None:
    settings = [s for values in given.values() if isinstance(values, list | tuple) for s in values if "=" in str(s)]
    recipe = given.get("recipe") or given.get("name")
    if isinstance(recipe, str) and not recipe.endswith(".yaml"):
        load_recipe(recipe, [str(setting) for setting in settings])


def test_targets_of_make_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for page, line in _of(r"^make "):
        target = line.split()[1]
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), (page, target)


def test_programs_of_benchmarks_exist() -> None:
    for page in PAGES:
        for name in re.findall(r"python -m (benchmarks\.\w+)", page.read_text()):
            assert (ROOT / f"{name.replace('.', '/')}.py").exists(), (page, name)


def test_extras_to_install_exist() -> None:
    extras = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    for page in PAGES:
        for names in re.findall(r"unbranch\[([\w,]+)\]", page.read_text()):
            assert set(names.split(",")) <= extras, (page, names)

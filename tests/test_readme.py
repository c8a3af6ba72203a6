"""The README's code runs, and its table of records is the one that the code prints."""

import re
import sys
import types
from pathlib import Path

import jax
import pytest

import backsolve
from backsolve.adjoint.store import store

README = Path(__file__).parents[1] / "README.md"
TEXT = README.read_text(encoding="utf-8")


def blocks(language):
    """Return the code blocks, each on its own lines of the file."""
    for found in re.finditer(rf"^```{language}\n(.*?)^```$", TEXT, re.M | re.S):
        yield "\n" * TEXT[: found.start(1)].count("\n") + found[1]


@pytest.fixture
def readme(monkeypatch):
    module = types.ModuleType("readme")
    monkeypatch.setitem(sys.modules, "readme", module)  # dataclasses look their module up
    store.clear()  # so that no factorisation is known yet
    return module.__dict__


def run(source, namespace):
    exec(compile(source, str(README), "exec"), namespace)


def words(table):
    """Return the cells of a table that are words, which do not vary from run to run."""
    return [re.findall(r"\b[A-Za-z]\w+", line) for line in table.strip().splitlines()]


def test_every_block_runs_after_those_before_it(readme):
    sources = list(blocks("python"))
    assert len(sources) == TEXT.count("```python") > 5
    for source in sources:
        run(source, readme)
    backsolve.check_solver(readme["MyLib"]())


def test_without_the_one_change_there_is_no_gradient(readme):
    after = next(blocks("python"))
    before = after.replace("backsolve.lapack", "scipy.linalg")
    before = before.replace("import backsolve", "import scipy.linalg")
    with pytest.raises(jax.errors.TracerArrayConversionError):
        run(before, readme)


def test_the_table_shown_is_the_table_printed(readme, capsys):
    sources = list(blocks("python"))
    run(sources[0], readme)
    run(next(source for source in sources if "print(log)" in source), readme)
    shown = next(blocks("text"))
    assert words(shown) == words(capsys.readouterr().out)


def test_the_petsc_diffs_are_taken_from_the_example():
    lines = (README.parent / "examples/petsc_existing_script.py").read_text(encoding="utf-8")
    example = {line.partition("  #")[0].strip() for line in lines.splitlines()}
    diffs = [block.strip("\n") for block in blocks("diff") if "petsc.from_" in block]
    assert len(diffs) == 2
    for line in "\n".join(diffs).splitlines():
        assert line[1:].strip() in example


@pytest.mark.parametrize("page", [README, README.parent / "examples/README.md"], ids=str)
def test_files_named_in_a_readme_exist(page):
    named = re.findall(r"\]\(([\w./]+)\)", page.read_text(encoding="utf-8"))
    assert len(named) > 10
    for path in named:
        assert (page.parent / path).is_file(), path


def test_every_example_and_every_plot_is_named_in_their_readme():
    examples = README.parent / "examples"
    text = (examples / "README.md").read_text(encoding="utf-8")
    for script in examples.glob("*.py"):
        assert f"({script.name})" in text, script.name
    shown = text + TEXT
    for plot in (examples / "images").iterdir():
        assert f"images/{plot.name})" in shown, plot.name


def test_the_comparison_shown_is_the_comparison_printed(readme, capsys):
    sources = list(blocks("python"))
    index = next(i for i, source in enumerate(sources) if "compare_gradients" in source)
    for source in (sources[0], *(s for s in sources[:index] if "def objective" in s)):
        run(source, readme)
    run(sources[index], readme)
    _, shown = blocks("text")
    assert words(capsys.readouterr().out) == words(shown)

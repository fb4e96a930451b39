"""The programs, commands and outputs in the documents are correct.

* A ```python block of README.md, CONTRIBUTING.md, docs or the READMEs of the examples is a whole program. It is run
  with warnings as errors, and must print the ```text block that follows, or nothing if there is none. stderr counts as
  output.
* If the first line of a block is a comment such as `# shop.py`, the block is that file and is not run. The blocks after
  it find the file in their folder, and `$ python shop.py` in a ```console block runs it.
* In a ```console block, `$ ` starts a command. A Python command with output is run and its output is compared: exactly
  if the document shows the program (`python shop.py`), without the figures for commands of the repository and for
  pytest. Other commands, and those without output, are not run here, but the make target, module or extra that they
  name must exist. tests/examples runs `make demo`, `make campaign`, `make service` and the other examples, and checks
  that the READMEs of these three show lines that they print. tests/test_benchmarks.py runs the benchmarks, and CI runs
  `make test` and `make check`.
* `...` in an output matches anything.
"""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import inspect
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import asyncpool
from tests.markdown import DOCUMENTS, ROOT, Block, Command, blocks, commands, without_figures
from tests.programs import Programs, Ran

BLOCKS = [block for document in DOCUMENTS for block in blocks(document)]
COMMANDS = [command for document in DOCUMENTS for command in commands(document)]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
NOT_OURS = {"curl", "dask", "docker", "git", "go", "prometheus", "promtool"}
"""Commands of other projects, which are not checked."""
CODE_WIDTH = 92
"""The site shows this many characters of code in a window of 1280 px (docs/static/site.css)."""
DOCSTRING_WIDTH = 95
"""And this many in an example of a class or function."""


def is_run(command: Command) -> bool:
    return command.words[0] == "python" and bool(command.output.strip())


@pytest.fixture(scope="session")
def programs() -> Iterator[Programs]:
    programs = Programs()
    yield programs
    programs.close()


@pytest.fixture
def run(programs: Programs, tmp_path: Path) -> Callable[[Block, list[str]], Ran]:
    """Run `python ARGV...` in a folder with the files that the document has shown before a block."""

    def run(block: Block, argv: list[str]) -> Ran:
        for name, text in block.files.items():
            write(tmp_path / name, text)
        return programs.run(argv, tmp_path)

    return run


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def assert_prints(place: str, ran: Ran, expected: str) -> None:
    expected, output = expected.strip() + "\n", ran.output.strip() + "\n"
    checker = doctest.OutputChecker()
    if not checker.check_output(expected, output, doctest.ELLIPSIS):
        difference = checker.output_difference(doctest.Example("", expected), output, doctest.REPORT_NDIFF)
        pytest.fail(f"{place} does not print what the document says (-), but (+): {difference}", pytrace=False)
    if ran.status != 0:
        pytest.fail(f"{place} prints what the document says, and ends with status {ran.status}", pytrace=False)


PROGRAMS = [block for block in BLOCKS if block.language == "python" and block.file_name is None]


@pytest.mark.parametrize("block", PROGRAMS, ids=[block.place for block in PROGRAMS])
def test_a_program_prints_what_the_document_says(
    block: Block, run: Callable[[Block, list[str]], Ran], tmp_path: Path
) -> None:
    name = block.place.replace(".", "_").replace(":", "_line_") + ".py"
    write(tmp_path / name, block.text)
    assert_prints(block.place, run(block, [name]), block.output or "")


RUN = [command for command in COMMANDS if is_run(command)]


@pytest.mark.parametrize("command", RUN, ids=[command.place for command in RUN])
def test_a_command_prints_what_the_document_says(command: Command, run: Callable[[Block, list[str]], Ran]) -> None:
    ran, expected = run(command.block, command.words[1:]), command.output
    if command.words[1] == "-m":
        ran, expected = ran._replace(output=without_figures(ran.output)), without_figures(expected)
    assert_prints(command.place, ran, expected)


def targets() -> set[str]:
    return set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def missing(command: Command) -> str | None:
    """What a command names that does not exist, if there is such a thing."""
    words = [word for word in command.words if not re.match(r"[A-Z_]+=", word)]
    if re.search(r"(^|/)python[\d.]*$", words[0]):
        words[0] = "python"
    match words:
        case ["make", *names]:
            unknown = [name for name in names if name not in targets()]
            return f"a make target {unknown[0]}" if unknown else None
        case ["python", "-m", "pip", "install", *what]:
            for name in what:
                ours = re.fullmatch(r"(?:asyncpool-toolkit|\.)(?:\[([\w,-]+)\])?", name)
                if name.startswith("asyncpool") and ours is None:
                    return f"a distribution {name} of ours"
                if ours is not None and (unknown := set((ours[1] or "").split(",")) - {""} - set(EXTRAS)):
                    return f"the extra {unknown.pop()}"
            return None
        case ["python", "-m", module, *_]:
            return None if importlib.util.find_spec(module) is not None else f"a module {module}"
        case ["python", file, *_]:
            return None if file in command.block.files else f"a file {file} above it"
        case ["bash", file]:
            return None if (ROOT / file).is_file() else f"a file {file}"
        case [program, *_]:
            return None if program in NOT_OURS else f"a rule to check {program!r} (see NOT_OURS)"
    return "a command"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.relative_to(ROOT).as_posix())
def test_what_commands_name_exists(document: Path) -> None:
    lacking = {command.place: missing(command) for command in COMMANDS if command.block.document == document}
    assert {place: what for place, what in lacking.items() if what is not None} == {}


def test_programs_and_commands_are_marked_so_that_they_are_found() -> None:
    near_misses = {"py", "py3", "python3", "pycon", "bash", "shell", "shell-session", "Python", "Console"}
    assert [block.place for block in BLOCKS if block.language.split(" ")[0] in near_misses] == []
    with_options = [block.place for block in BLOCKS if re.match("(python|console|sh)\\W", block.language)]
    assert with_options == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.relative_to(ROOT).as_posix())
def test_no_document_has_a_placeholder(document: Path) -> None:
    assert re.findall(r"^(?:[A-Z]+_[A-Z_]+|TODO.*)$", document.read_text(encoding="utf-8"), re.MULTILINE) == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.relative_to(ROOT).as_posix())
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", document.read_text(encoding="utf-8"))
    missing = [link for link in links if not (document.parent / link).exists()]
    assert missing == []


def test_the_readme_is_short_and_says_early_how_to_install() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 200
    assert lines.index("## Install") < 30


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_code_fits_into_the_site(document: Path) -> None:
    too_long = [
        f"{document.name}:{number}: {len(line)} characters"
        for block in BLOCKS
        if block.document == document
        for number, line in enumerate(block.text.expandtabs(8).splitlines(), block.line + 1)
        if len(line) > CODE_WIDTH
    ]
    assert too_long == []


def examples_of(docstring: str) -> list[str]:
    """Return the lines of the examples in a docstring, which are indented, as docs/conf.py marks them."""
    text = re.split(r"^(?:Args|Attributes|Raises|Returns|Yields):$", docstring, maxsplit=1, flags=re.MULTILINE)[0]
    return [line[4:] for line in text.splitlines() if line.startswith("    ")]


@pytest.mark.parametrize("name", asyncpool.__all__)
def test_the_examples_of_a_docstring_fit_into_the_site(name: str) -> None:
    described = getattr(asyncpool, name)
    methods = vars(described).values() if isinstance(described, type) else []
    docstrings = [inspect.getdoc(one) or "" for one in (described, *methods) if callable(one)]
    lines = [line for docstring in docstrings for line in examples_of(docstring)]
    assert [line for line in lines if len(line) > DOCSTRING_WIDTH] == []


def printed_by(example: str, programs: Programs, folder: Path) -> list[str]:
    ran = programs.run(["-m", example], folder)
    assert ran.status == 0, ran.output
    return ran.output.splitlines()


def test_the_basic_example_runs(programs: Programs, tmp_path: Path) -> None:
    lines = printed_by("examples.basic_pool", programs, tmp_path)
    assert {line.split(": ")[1] for line in lines[:20]} == {f"{n} squared is {n * n}" for n in range(1, 21)}
    assert lines[20].startswith("pool: 20 jobs in ")
    assert lines[21] == "  20 succeeded, 0 failed, 0 cancelled"


def test_the_example_of_an_engine_runs(programs: Programs, tmp_path: Path) -> None:
    lines = printed_by("examples.command_engine", programs, tmp_path)
    assert {line.split(": ")[1] for line in lines[:20]} == {f"{n} squared is {n * n}" for n in range(1, 21)}
    assert lines[20:] == ["20 jobs on 2 processes"]


def test_the_example_of_retries_and_dead_letters_runs(programs: Programs, tmp_path: Path) -> None:
    lines = printed_by("examples.retries_and_dead_letters", programs, tmp_path)
    outcomes = [line for line in lines if line.startswith(("Succeeded(", "Failed("))]
    failed = {int(line[7:].partition(",")[0]) for line in outcomes if line.startswith("Failed(")}
    assert len(outcomes) == 10
    assert failed >= {4, 8}  # those that are offline
    assert lines.index("Repaired the destinations [4, 8]") < lines.index(f"Replaying {len(failed)} dead letters")
    alerts = [line for line in lines if line.startswith("ALERT: job ")]
    assert all("after 3 attempts: ConnectionError: attempt 3: no connection" in line for line in alerts)
    [left] = [int(line.split()[0]) for line in lines if line.endswith(" dead letters left")]
    assert len(alerts) == len(failed) + left
    assert f"  {10 - left} succeeded, {len(alerts)} failed, 0 cancelled" in lines


ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
FILES = {file for file in (ROOT / "asyncpool").rglob("*.py") if file.stem != "__init__"}
MODULES = {file.relative_to(ROOT / "asyncpool").with_suffix("").as_posix() for file in FILES}


def test_the_house_has_all_modules_and_no_others() -> None:
    house = ARCHITECTURE.split("```")[1]
    floors = [re.split(r"  +", line)[0] for line in house.strip().splitlines()]
    assert {name for floor in floors for name in floor.split(" | ")} == MODULES


def test_the_tests_that_comments_name_exist() -> None:
    tests = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("*.py"))
    defined = set(re.findall(r"^(?:async )?def (\w+)", tests, re.MULTILINE))
    files = {file.stem for file in (ROOT / "tests").rglob("*.py")}
    missing, named = [], 0
    for file in FILES:
        text = re.sub(r"\s+#?\s*", " ", file.read_text(encoding="utf-8"))
        names = re.findall(r"\btest_\w+(?!\w*[/*])", text)
        for scenarios in re.findall(r"tests/laws: ([a-z_]+(?:, [a-z_]+)*)", text):
            names += scenarios.split(", ")
        named += len(names)
        missing += [f"{file.relative_to(ROOT)}: {name}" for name in names if name not in defined | files]
    assert missing == []
    assert named > 40


def test_what_the_architecture_names_is_in_the_source() -> None:
    files = set(re.findall(r"`([\w/]+)\.py`", ARCHITECTURE))
    assert files - MODULES == set()
    classes = {
        name: value
        for module in MODULES
        for name, value in vars(importlib.import_module(f"asyncpool.{module.replace('/', '.')}")).items()
        if isinstance(value, type)
    }
    named = re.findall(r"`([A-Z]\w+)\.(\w+)`", ARCHITECTURE)
    assert [f"{owner}.{name}" for owner, name in named if not hasattr(classes.get(owner), name)] == []
    assert named

"""What the documents print is what runs: each Python block of the README is run, and its output compared."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROGRAM_AND_OUTPUT = re.compile(r"```python\n(.*?)```\n+```text\n(.*?)```", re.DOTALL)
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]


@pytest.mark.parametrize(
    ("program", "output"),
    [
        pytest.param(*match.groups(), id=f"block{number}")
        for number, match in enumerate(PROGRAM_AND_OUTPUT.finditer(README))
    ],
)
def test_the_readme_prints_what_runs(program: str, output: str) -> None:
    command = [sys.executable, "-u", "-W", "error", "-c", program]
    ran = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=60
    )
    assert ran.stdout.strip() == output.strip()
    assert ran.returncode == 0


def test_every_python_block_of_the_readme_has_its_output() -> None:
    assert README.count("```python") == len(PROGRAM_AND_OUTPUT.findall(README)) > 0


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_no_document_has_a_placeholder(document: Path) -> None:
    assert re.findall(r"^(?:[A-Z]+_[A-Z_]+|TODO.*)$", document.read_text(encoding="utf-8"), re.MULTILINE) == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", document.read_text(encoding="utf-8"))
    missing = [link for link in links if not (document.parent / link).exists()]
    assert missing == []


def test_the_basic_example_runs() -> None:
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-m", "examples.basic_pool"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ran.stderr == ""
    lines = ran.stdout.splitlines()
    assert len(lines) == 21
    assert {line.split(": ")[1] for line in lines[:20]} == {f"{n} squared is {n * n}" for n in range(1, 21)}
    assert lines[20].startswith("20 jobs in ")
    assert lines[20].endswith(" on 5 workers")

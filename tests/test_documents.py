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


def printed_by(example: str) -> list[str]:
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-m", example],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout.splitlines()


def test_the_basic_example_runs() -> None:
    lines = printed_by("examples.basic_pool")
    assert len(lines) == 21
    assert {line.split(": ")[1] for line in lines[:20]} == {f"{n} squared is {n * n}" for n in range(1, 21)}
    assert lines[20].startswith("20 jobs in ")
    assert lines[20].endswith(" on 5 workers")


def test_the_example_of_retries_and_dead_letters_runs() -> None:
    lines = printed_by("examples.retries_and_dead_letters")
    outcomes = [line for line in lines if line.startswith(("Succeeded(", "Failed("))]
    alerts = [line for line in lines if line.startswith("ALERT: job ")]
    failed = sum(line.startswith("Failed(") for line in outcomes)
    assert len(outcomes) == 10
    assert len(alerts) >= failed
    assert all("after 3 attempts: ConnectionError: attempt 3: no connection" in line for line in alerts)
    left = re.fullmatch(r"(\d+) delivered, \d+ retries, (\d+) dead letters left", lines[-1])
    assert left is not None
    assert int(left[1]) + int(left[2]) == 10
    assert len(alerts) == failed + int(left[2])

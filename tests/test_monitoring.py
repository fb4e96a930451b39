"""docs/monitoring and docs/metrics.md against what the collector exports; and a real Prometheus, where there is one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric

from asyncpool import Breaker, DeadLetters, WorkerPool
from asyncpool.prometheus import PoolCollector
from asyncpool.testing import run
from examples.prometheus_check import dashboard_queries, main
from tests.engines.memory import InMemory, Portable
from tests.helpers import echo

ROOT = Path(__file__).resolve().parent.parent
MONITORING = ROOT / "docs" / "monitoring"
METRICS = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text(encoding="utf-8"))


def families() -> list[Metric]:
    """What a scrape shows of a pool that has everything that there are metrics for."""

    async def scrape() -> list[Metric]:
        registry = CollectorRegistry()
        options: dict[str, Any] = {"dead_letters": DeadLetters(), "engine": InMemory(1), "breaker": Breaker()}
        async with WorkerPool(Portable(echo), workers=1, **options) as pool:
            registry.register(PoolCollector(pool))
            return list(registry.collect())

    return run(scrape)


def exported() -> dict[str, set[str]]:
    """The samples that a scrape shows, and the labels of each."""
    samples = [sample for family in families() for sample in family.samples]
    return {sample.name: set(sample.labels) for sample in samples}


def names_in(text: str) -> set[str]:
    return set(re.findall(r"\basyncpool_[a-z_]+", text))


def rules() -> str:
    """The expressions of the alerts."""
    text = (MONITORING / "alerts.yml").read_text(encoding="utf-8")
    return "\n".join(re.findall(r"expr: (?:>-\n)?((?:.*\n)+?) +(?:for|labels):", text))


def test_the_dashboard_asks_only_for_metrics_that_there_are() -> None:
    asked = names_in("\n".join(dashboard_queries(1)))
    asked |= names_in(json.dumps(DASHBOARD["templating"]))
    assert asked <= set(exported())
    assert len(asked) > 15


def test_the_alerts_ask_only_for_metrics_that_there_are() -> None:
    asked = names_in(rules())
    assert asked <= set(exported())
    assert len(asked) == 11


def test_the_dashboard_shows_every_metric_but_counts_and_sums() -> None:
    asked = names_in("\n".join(dashboard_queries(1)))
    unasked = set(exported()) - asked
    assert unasked == {
        "asyncpool_jobs_submitted_total",
        "asyncpool_running_jobs_peak",
        "asyncpool_attempt_queued_seconds_count",
        "asyncpool_attempt_queued_seconds_sum",
        "asyncpool_attempt_running_seconds_count",
        "asyncpool_attempt_running_seconds_sum",
    }


def test_every_query_uses_labels_that_there_are() -> None:
    labels = {"job", "instance"}.union(*exported().values())
    for text in (*dashboard_queries(1), rules()):
        used = set(re.findall(r"(\w+)=~?\"", text))
        for group in re.findall(r"(?:by|without|ignoring) ?\(([^)]*)\)", text):
            used |= {label.strip() for label in group.split(",")}
        assert used <= labels


def test_the_dashboard_chooses_its_data_source_and_pools() -> None:
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert list(variables) == ["datasource", "job", "instance", "pool"]
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"
            assert target["expr"].count('pool=~"$pool"') == len(names_in(target["expr"]) - {"asyncpool_"})


def test_no_panel_covers_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_every_alert_has_a_test_and_a_line_in_the_documents() -> None:
    alerts = re.findall(r"alert: (\w+)", (MONITORING / "alerts.yml").read_text(encoding="utf-8"))
    tested = set(re.findall(r"alertname: (\w+)", (MONITORING / "alerts_test.yml").read_text(encoding="utf-8")))
    assert set(alerts) == tested
    assert [alert for alert in alerts if f"`{alert}`" not in METRICS] == []


def test_the_table_of_metrics_is_complete() -> None:
    rows = re.findall(r"^\| `(asyncpool_\w+)` \| (\w+) \| ([^|]*) \|", METRICS, re.MULTILINE)
    expected: list[tuple[str, str, str]] = []
    for family in families():
        labels = sorted(set().union(*(sample.labels for sample in family.samples)) - {"pool", "le"})
        name = family.name + "_total" * (family.type == "counter")
        expected.append((name, family.type, ", ".join(f"`{label}`" for label in labels)))
    assert rows == expected


# -- A real Prometheus -------------------------------------------------------------------------------------------------


def needs(program: str) -> Any:
    return pytest.mark.skipif(
        shutil.which(program) is None, reason=f"needs the program {program} (Debian: apt install prometheus)"
    )


@pytest.mark.slow
@needs("prometheus")
def test_a_real_prometheus_sees_what_is_true() -> None:
    command = [sys.executable, "-W", "error", "-m", "examples.prometheus_check", "--interval", "0.25"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stdout
    assert ran.stdout.splitlines()[-1] == "25 of 25 checks passed"


@needs("promtool")
def test_the_alerts_pass_their_unit_tests() -> None:
    for command in (["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]):
        ran = subprocess.run(
            ["promtool", *command], cwd=MONITORING, capture_output=True, text=True, check=False, timeout=60
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr


@needs("promtool")
def test_promtool_finds_nothing_to_say_about_the_metrics() -> None:
    from prometheus_client import generate_latest

    registry = CollectorRegistry()
    registry.register(PoolCollector(WorkerPool(echo, workers=1, dead_letters=DeadLetters())))
    command = ["promtool", "check", "metrics"]
    ran = subprocess.run(command, input=generate_latest(registry), capture_output=True, check=False, timeout=60)
    assert (ran.returncode, ran.stdout + ran.stderr) == (0, b"")


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/metrics", "127.0.0.1:8080", "http://", "http://a:b/"])
def test_the_check_refuses_what_is_no_page(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main([url])
    assert exit.value.code == 2
    assert "must be an http URL such as http://127.0.0.1:8080/metrics" in capsys.readouterr().err


def test_the_check_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SystemExit) as exit:
        main([])
    assert exit.value.code == 2
    assert "the program 'prometheus' is not on PATH; install it" in capsys.readouterr().err

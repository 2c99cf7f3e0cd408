"""The dashboard, the alert rules and the page of docs/: each metric in them exists, with its labels."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.web.monitoring.definitions import METRICS
from tests.documentation import DOCS

#: It has no annotations.
yaml: Any = importlib.import_module("yaml")

#: The labels that Prometheus adds, and those of every metric.
COMMON = {"job", "instance", "process", "le"}
SELECTOR = re.compile(r"(dicomtwist_\w+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"[^"]*"')
GROUPED = re.compile(r"(?:by|without)\s*\(([^)]*)\)")


def exposed() -> dict[str, tuple[str, ...]]:
    """Return the names that are exposed, with their labels."""
    found = {}
    for name, metric in METRICS.items():
        suffixes = ("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",)
        found.update({name + suffix: metric.labels for suffix in suffixes})
    return found


def read(name: str) -> str:
    return (Path(DOCS) / "monitoring" / name).read_text()


def expressions() -> Iterator[str]:
    """Yield all expressions of both files."""
    for panel in json.loads(read("dashboard.json"))["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    for group in yaml.safe_load(read("alerts.yaml"))["groups"]:
        yield from (rule["expr"] for rule in group["rules"])


class Files(SynchronousTestCase):
    def test_metrics_and_labels(self) -> None:
        known = exposed()
        used = set()
        for expression in expressions():
            labels: set[str] = set()
            for name, selector in SELECTOR.findall(expression):
                self.assertIn(name, known, expression)
                used.add(name)
                labels.update(known[name])
                self.assertLessEqual(set(MATCHER.findall(selector)) - COMMON, set(known[name]), expression)
            grouped = {one.strip() for group in GROUPED.findall(expression) for one in group.split(",")}
            self.assertLessEqual(grouped - COMMON, labels, expression)
            self.assertEqual(expression.count("("), expression.count(")"), expression)
        self.assertGreater(len(used), 25)

    def test_dashboard(self) -> None:
        panels = json.loads(read("dashboard.json"))["panels"]
        self.assertEqual(len({panel["id"] for panel in panels}), len(panels))
        places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
        self.assertEqual(len(places), len(panels))

    def test_alerts(self) -> None:
        rules = [rule for group in yaml.safe_load(read("alerts.yaml"))["groups"] for rule in group["rules"]]
        self.assertEqual(len({rule["alert"] for rule in rules}), len(rules))
        for rule in rules:
            self.assertIn(rule["labels"]["severity"], ("critical", "warning"))
            self.assertTrue(rule["annotations"]["summary"])
            self.assertRegex(rule["for"], r"\A\d+[mh]\Z")

    def test_page(self) -> None:
        """docs/guides/monitoring.md has a row for each metric."""
        page = (Path(DOCS) / "guides" / "monitoring.md").read_text()
        rows = dict(re.findall(r"^\| `(dicomtwist_\w+)` \| (.*?) \|", page, re.MULTILINE))
        self.assertEqual(set(rows), set(METRICS))
        for name, metric in METRICS.items():
            self.assertEqual(tuple(re.findall(r"`(\w+)`", rows[name])), metric.labels, name)

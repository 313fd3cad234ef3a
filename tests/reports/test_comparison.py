"""What two probes side by side say of how they were made."""

from pathlib import Path

from transferkit.reports.comparison import versions_of
from transferkit.reports.result_files import ResultFolder
from transferkit.runtime.json_files import write_json


def test_the_versions_of_both_are_named(tmp_path: Path) -> None:
    recorded = {"a": {"torch": "2.1", "numpy": "1", "python": "3.11"}, "b": {"torch": "2.2", "python": "3.11"}}
    for name, versions in recorded.items():
        write_json(tmp_path / name / "probe.json", {"versions": versions})
    found = versions_of(ResultFolder(tmp_path / "a"), ResultFolder(tmp_path / "b"))
    assert found == {"torch": "2.1, then 2.2", "numpy": "1, then –", "python": "3.11"}
    (tmp_path / "c").mkdir()
    assert versions_of(ResultFolder(tmp_path / "c"), ResultFolder(tmp_path / "c")) == {}

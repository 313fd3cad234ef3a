"""Problems in a set of images: one pass over files, names, labels and splits."""

from transferkit.data.scan.findings import KINDS, Finding, Report, Severity
from transferkit.data.scan.scan import scan

__all__ = ["KINDS", "Finding", "Report", "Severity", "scan"]

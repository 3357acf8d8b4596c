"""Reports on runs: their records, a comparison with the baseline, pictures and one HTML page."""

from mgray.report.compare import print_comparison
from mgray.report.page import write_report
from mgray.report.records import RunRecords, read_run

__all__ = ["RunRecords", "print_comparison", "read_run", "write_report"]

"""The report stage: report.html, a view of the record alone."""

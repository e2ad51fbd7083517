"""Names of the files of a training run and of reports, and the exit statuses of processes."""

from __future__ import annotations

#: The trainer's last file: what it wrote, with digests. A run that has it is complete.
RESULT = "run.json"
SETTINGS = "settings.json"
METRICS = "metrics.jsonl"
REPORT = "report.html"
SUMMARY = "summary.md"

#: Of ranks that were told to stop and have written a checkpoint: start me again (EX_TEMPFAIL).
EXIT_RESUME = 75

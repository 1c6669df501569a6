"""Report: a run as one page, report.html, for a browser: `python -m minidl.report RUN`, or of several runs beside one another.

A run keeps a journal (journal.py, findings.py) beside its metrics. From these files alone (folder.py) the page is made (page.py,
compare.py), at any time: while the run goes on, or long after it. Pages need the extra `viz` (Matplotlib, Jinja2); the journal does not.
"""

from minidl.report.compare import compare
from minidl.report.journal import Journal
from minidl.report.page import missing, write

__all__ = ["Journal", "compare", "missing", "write"]

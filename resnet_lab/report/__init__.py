"""The report: one page that compares many run folders; `__main__.py` is the command (no torch)."""

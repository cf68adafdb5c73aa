"""Many run folders in, one page that compares them out; `__main__.py` is the command (no torch)."""

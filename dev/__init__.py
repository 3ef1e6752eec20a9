"""Set-up and commands behind ``dev.py``.  Importing anything here needs Python's standard library only."""

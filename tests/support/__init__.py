"""Fakes and builders for tests: nothing of Stor is patched, everything is handed in."""

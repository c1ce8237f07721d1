"""Stor keeps and serves files by SHA-256 over HTTP, on mirrored disks."""

__version__ = "2.0.0.dev0"

"""What all disks of a host hold. Plain blocking Python: no Twisted."""

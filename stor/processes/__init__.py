"""Several processes as one Stor: a supervisor that looks after the disks, and its workers."""

"""Local disks: where samples are kept, how they are written so that none is lost."""

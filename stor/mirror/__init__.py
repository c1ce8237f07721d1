"""The disks as the reactor sees them: sets of disks that hold the same samples."""

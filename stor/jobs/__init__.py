"""Long work of one shape: paced, kept on disk, and to be paused, resumed and cancelled."""

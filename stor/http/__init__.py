"""HTTP: requests in, answers out. Knows a store, no disk and no S3."""

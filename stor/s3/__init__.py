"""The S3 tier: samples in a bucket of any S3-compatible engine. Knows no disk."""

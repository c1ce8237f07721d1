"""How fast Stor is, beside what limits it. See `bench/README.md`."""

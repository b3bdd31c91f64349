"""Tools for tests that need real networks and processes."""

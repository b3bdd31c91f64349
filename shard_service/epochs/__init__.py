"""One plan after the other: an assignment is prepared, switched to, and run."""

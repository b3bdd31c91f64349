"""The weights of units: where they come from, where they are kept, and who else gets them."""

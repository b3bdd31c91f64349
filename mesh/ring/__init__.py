"""What both ends of an edge of the ring share."""

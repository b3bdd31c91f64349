"""The shard's two edges of the ring: frames come in from the member before and go out to the next."""

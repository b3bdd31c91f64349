"""From a frame to the next member's frame: the units of this shard over a micro-batch, and the tokens that are drawn from it."""

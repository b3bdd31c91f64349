"""Keys and values of the layers of this shard, over changes of plan and from one shard to the next."""

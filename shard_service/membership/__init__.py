"""The shard's place in the cluster: how it finds the coordinator, joins, and keeps its lease."""

"""The asyncio shell around the cluster machine: leases of shards, time, and what the machine decides.

Each of these knows only those above it:

    reachability     which address of a member another member should dial
    readiness        why nothing is served now, if that is so
    join_stream      the coordinator's end of one Join stream, which is one lease
    shard_messages   what a shard says on its stream, as an event
    join_streams     all streams: their beginning, what comes over them, their end
    orders           what a shard is told, in the words of the protocol
    ring_life        the ring is opened, drained, watched, closed
    membership       events in turn, and every action of the machine done
"""

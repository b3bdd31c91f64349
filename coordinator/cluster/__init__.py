"""The cluster: who is a member, which plan is active, what is done when either changes.

One way in: `machine.ClusterMachine`.

    identities, shard_reports  what things are called by; what shards tell about themselves
    events, actions            what comes in and goes out
    config, phases             settings; which phase may follow which
    descriptions               what the cluster says about itself
    books                      what the machine knows, each with the methods that change it
    event_table                event, what it is about, when it counts, who takes care of it
    parts                      what the machine does; they share the books
    invariants, snapshot       what holds between events; what people see
    machine                    fills in the table; events in, actions out
"""

"""What the cluster machine knows.

A book keeps its own invariants: parts read it, and change it by its methods only.

    book             what stands there                                              changed by
    journal          the time, actions, what is told to people                      all
    members          who is a member, leases, cordons                               machine, joins_and_losses, wishes, measurements
    state            the phase, and the plans: before, active, candidate            switch, preparation, planning, failures, faults
    timer            when a plan is made                                            planning
    better           whether a faster plan may exist, and when it is looked for     planning, switch, measurements, wishes, joins_and_losses
    pause            since when and why answers wait                                switch, failures
    retries          failures of rings in a row                                     failures
    retries_beside   failures in a row of plans that are prepared beside one        failures, switch
    cache            where the KV cache of each layer lies                          switch, preparation, planning, idle_shards, faults
    links            edges that break though both ends live                         failures, joins_and_losses
    steps            measured times of steps                                        measurements
    losses           members that were lost of late and are not back                joins_and_losses
    awaited          where the oldest frame lies that has not come back             standstills
"""

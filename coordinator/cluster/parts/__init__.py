"""What the cluster machine does.

Parts share the books, and each calls only parts above it:

    idle_shards        who has no part is told why, is released, may go
    plan_search        which plan is the best now
    switch             a ring closes, the shards switch, the next ring opens and serves
    preparation        a candidate is loaded, until all can switch
    planning           when a plan is made, and whether it is worth a change
    failures           retries, pauses, who is to blame, who is set aside
    faults             who is at fault must prove that it computes
    standstills        who holds its lease and does not do its part
    joins_and_losses   members come and go
    wishes             shards and people want something else
    measurements       steps are measured
"""

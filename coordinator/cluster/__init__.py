"""The cluster: who is a member, which plan is active, what is done when either changes. One way in: `machine.ClusterMachine`.

What comes in and goes out:  facts, events, actions; snapshot, for people.
What the machine knows:      state (settings, phases, plans), member, roster, cache_places, links, journal; invariants hold between events.
What needs only arguments:   admission, placement, speeds, words; and coordinator/planner, which makes plans.

What it does is divided into parts. They share the `books`, and each calls only parts above it:

    idle_shards        who has no part is told why, is released, may go
    plan_search        which plan is the best now
    switch             a ring closes, the shards switch, the next ring opens and serves
    preparation        a candidate is loaded, until all can switch
    planning           when a plan is made, and whether it is worth a change
    failures           retries, pauses, who is to blame, who is set aside
    joins_and_losses   members come and go
    wishes             shards and people want something else
    measurements       steps are measured
    machine            what counts when, and which part takes care of it
"""

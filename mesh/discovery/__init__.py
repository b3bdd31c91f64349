"""How coordinators and shards find each other on the local network: multicast DNS (RFC 6762) and service discovery (RFC 6763).

Both announce an instance of SERVICE_TYPE. Its text record says `role` (`coordinator` or `shard`), `id`, `cluster` (a hash of the
cluster's name) and `proto`; that of a shard also `name` and `state` (`looking` or `joined`); never a secret. Both look for each other, so
that one direction of multicast suffices: a shard joins the coordinator that it hears, a coordinator invites the shard that it hears.
Whoever wants to be found repeats its announcement unasked, for where multicast passes in one direction only, questions do not arrive.

All real interfaces and loopback are used, so that processes on one machine find each other without a network, also those that come and go.
Where multicast is blocked nothing is found and nothing fails. Anybody can announce anything: what is read is checked and bounded.

    records     what is said and was heard
    reading     of the records of others
    presence    an endpoint on the interfaces that the machine has at present, and what uses it
    announcer   says it
    candidates  coordinators to try, in which order
    browsers    hear it
"""

"""The range of every field of every message that comes over the network, and the check of each message where it enters.

    rules      what a range can be: of a number, a text, bytes, a list
    table      which field has which; a field without a rule is an error of this program, not a free field
    checks     a message against the rules, by its descriptor

    decoding   from bytes to a message that is in range, or to why it is not

`mesh.channels` checks what a server is asked, and `mesh.checked_channels` what it answers. Ranges say what can be at all, in any cluster.
What fits the model, the plan or the message before is checked by whoever knows these. A field that is absent is always in range.
"""

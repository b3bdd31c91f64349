"""Shards that announce themselves and are no members: who they are, why they are none, and calling them.

seen_shards  whom to call and when, and what is known of each; pure
inviter      hears announcements, makes the calls
"""

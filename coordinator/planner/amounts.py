"""Figures for people."""


def format_bytes(size_bytes: int) -> str:
    """GiB from 0.1 GiB on, else MiB."""
    gib = size_bytes / 2**30
    return f"{gib:.1f} GiB" if gib >= 0.1 else f"{size_bytes / 2**20:.1f} MiB"


def format_room(size_bytes: int) -> str:
    """Of one machine, where some MiB decide: MiB up to 1 GiB."""
    return f"{size_bytes / 2**30:.1f} GiB" if size_bytes >= 2**30 else f"{size_bytes / 2**20:.0f} MiB"


def format_rate(s_per_byte: float) -> str:
    """At which weights are read: '8.7 GB/s'."""
    return f"{1e-9 / s_per_byte:.1f} GB/s"


def format_speed(tokens_per_s: float) -> str:
    digits = 0 if tokens_per_s >= 20 else 1 if tokens_per_s >= 1 else 2
    return f"{tokens_per_s:.{digits}f}"

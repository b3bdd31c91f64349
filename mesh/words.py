"""Words for people, as both services and the command line use them."""


def counted(number: int, noun: str) -> str:
    """'1 thread', '2 threads'."""
    return f"{number} {noun}{'s' if number != 1 else ''}"

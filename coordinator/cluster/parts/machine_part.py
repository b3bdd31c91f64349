"""What all parts of the machine have in common: the books."""

from dairllm.coordinator.cluster.books.books import Books


class MachinePart:
    """A part of the machine. It reads the books, changes them by their methods, and has no memory of its own; it calls only parts that it
    was given."""

    def __init__(self, books: Books) -> None:
        self._config = books.config
        self._journal = books.journal
        self._members = books.members
        self._links = books.links
        self._retries = books.retries
        self._retries_beside = books.retries_beside
        self._state = books.state
        self._timer = books.timer
        self._better = books.better
        self._pause = books.pause
        self._cache = books.cache
        self._steps = books.steps
        self._losses = books.losses
        self._awaited = books.awaited

    @property
    def _now_s(self) -> float:
        return self._journal.now_s

"""Weights of a stage that do not stay in memory: whole layers, the experts of layers, the embedding."""

from collections.abc import Iterator
from dataclasses import dataclass

from dairllm.shard_service.weights.embedding_rows import EmbeddingRows
from dairllm.shard_service.weights.experts import ExpertStore
from dairllm.shard_service.weights.reading import StreamMeter, UnitPlace
from dairllm.shard_service.weights.streaming import WeightStream
from dairllm.shard_service.weights.writers import Matrices


@dataclass(frozen=True, slots=True, eq=False)
class Streams:
    """None where there are none. meter: counts what is read, for all streams of the process."""

    meter: StreamMeter
    layers: WeightStream | None = None
    experts: ExpertStore | None = None
    embedding: EmbeddingRows | None = None

    def __iter__(self) -> Iterator[WeightStream | ExpertStore | EmbeddingRows]:
        return (stream for stream in (self.layers, self.experts, self.embedding) if stream is not None)

    def has(self, unit: int) -> bool:
        """Whether not all of it stays."""
        return any(unit in stream for stream in self)

    def matrix_of(self, unit: int, role: str) -> Matrices | None:
        """Where a matrix comes to that does not stay; None for one that does."""
        return next((stream.matrices_of(unit).get(role) for stream in self if unit in stream), None)

    def place(self, unit: int, place: UnitPlace) -> None:
        """Where it is read from: the bytes there were verified."""
        for stream in self:
            if unit in stream:
                stream.place(unit, place)

    def start(self) -> None:
        """All units are placed."""
        if self.layers is not None:
            self.layers.start()


NO_STREAMS = Streams(StreamMeter())

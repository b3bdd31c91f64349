"""The kernels' stages over the weights of an assignment, and what memory they take."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dairllm.kernels_pyx import PackedMatrix, PackedStack, Stage, get_num_threads
from dairllm.mesh.errors import InvalidModel
from dairllm.model_files.memory import HEAD_ROWS, scratch_of
from dairllm.model_files.spec import ModelSpec
from dairllm.shard_service.assignment import AssignmentFacts
from dairllm.shard_service.forward.stage_layers import stage_layer, stage_spec
from dairllm.shard_service.weights.assembler import LoadedUnit
from dairllm.shard_service.weights.writers import Weights


class StageParts(NamedTuple):
    """body: embedding and layers, as far as they are here; head: final norm and output. At least one of them."""

    body: Stage | None
    head: Stage | None


def build_stage(assignment: AssignmentFacts, units: Sequence[LoadedUnit]) -> StageParts:
    """The kernels' stages over these weights, one per unit of the assignment. Raises InvalidModel if they do not fit the model."""
    parts = _empty_stage(assignment)
    try:
        for facts, unit in zip(assignment.units, units, strict=True):
            _add_unit(parts, facts.index, unit.weights, assignment)
    except ValueError as error:
        raise InvalidModel(f"the weights do not fit the model: {error}") from error
    return parts


def check_stage(assignment: AssignmentFacts) -> None:
    """Raise InvalidModel for what the kernels can't do, before anything is loaded."""
    _empty_stage(assignment)


def _empty_stage(assignment: AssignmentFacts) -> StageParts:
    geometry = assignment.geometry
    try:
        spec = stage_spec(assignment.model, assignment.wire)
        body = Stage(spec, max_rows=geometry.max_batch_rows, max_context=geometry.context_length) if assignment.has_body else None
        output = Stage(spec, max_rows=HEAD_ROWS, max_context=HEAD_ROWS) if assignment.has_head else None
        for unit in assignment.layer_units:
            assert body is not None
            body.check_layer(stage_layer(assignment.model, unit - 1))
    except ValueError as error:
        raise InvalidModel(f"the model can't be run: {error}") from error
    return StageParts(body, output)


def scratch_bytes(assignment: AssignmentFacts) -> int:
    """Memory for activations and logits while a frame is computed, in the kernels and outside."""
    geometry = assignment.geometry
    scratch = scratch_of(assignment.model, assignment.units, max_rows=geometry.max_batch_rows, context_length=geometry.context_length)
    return scratch.size_bytes(has_body=assignment.has_body, has_head=assignment.has_head, num_threads=get_num_threads())


def _add_unit(parts: StageParts, index: int, weights: Mapping[str, Weights], assignment: AssignmentFacts) -> None:
    model = assignment.model
    if index == model.head_index:
        assert parts.head is not None
        norm, output = weights["output_norm"], weights["output"]
        assert isinstance(norm, np.ndarray)
        assert isinstance(output, PackedMatrix)
        if index not in assignment.streamed:
            _require_outputs(output, model, "output")
        parts.head.set_head(norm, output)
        return
    assert parts.body is not None
    if index == 0:
        table = weights["token_embedding"]
        assert isinstance(table, PackedMatrix)
        if not assignment.has_embedding_rows:
            _require_outputs(table, model, "token_embedding")
        others = {role: part for role, part in weights.items() if role != "token_embedding" and not isinstance(part, PackedStack)}
        parts.body.set_embedding(table, others)
    else:
        parts.body.add_layer(index - 1, stage_layer(model, index - 1), weights)


def _require_outputs(matrix: PackedMatrix, model: ModelSpec, role: str) -> None:
    """The kernels know the vocabulary by these matrices only; frames are checked against the model's."""
    if matrix.outputs != model.vocab_size:
        raise InvalidModel(f"{role} has {matrix.outputs} rows; expected the vocabulary's {model.vocab_size}")

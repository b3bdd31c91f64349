# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""The one extension module: checks arguments, drops the GIL, calls C. The C (folder c/) knows nothing of Python."""

include "matrix.pxi"
include "stacks.pxi"
include "encodings.pxi"
include "elementwise.pxi"
include "pool.pxi"
include "kv_cache.pxi"
include "stage_layers.pxi"
include "experts.pxi"
include "latent_attention.pxi"
include "linear_attention.pxi"
include "stage.pxi"
include "bandwidth.pxi"


def optimization_info() -> dict[str, object]:
    return describe_isa() | {"num_threads": get_num_threads()}

"""A small known thing to compute: how a member shows that it computes, and computes right.

The result is the same to the last bit on every machine (docs/kernels.md), and nobody knows it without the challenge.
"""

import hashlib

import numpy as np

from dairllm.kernels_pyx import PackedMatrix

_OUTPUTS = 16
_INPUTS = 4096
_BLOCK_WEIGHTS = 32
_BLOCK_BYTES = 16
_SCALE = np.float16(1 / 64).tobytes()


def proof_of(challenge: bytes) -> bytes:
    """SHA-256 of 16 float32: a Q4_0 matrix times a row, both from SHAKE-128 of the challenge. It takes about a millisecond."""
    weights_bytes = _OUTPUTS * _INPUTS // _BLOCK_WEIGHTS * _BLOCK_BYTES
    stream = hashlib.shake_128(challenge).digest(weights_bytes + _INPUTS)
    blocks = (stream[start : start + _BLOCK_BYTES] for start in range(0, weights_bytes, _BLOCK_BYTES))
    matrix = PackedMatrix("Q4_0", _OUTPUTS, _INPUTS)
    matrix.pack_rows(0, b"".join(_SCALE + block for block in blocks))
    row = np.frombuffer(stream, np.int8, offset=weights_bytes).astype(np.float32)[np.newaxis] / np.float32(128)
    return hashlib.sha256(matrix.matmul(row).astype("<f4").tobytes()).digest()

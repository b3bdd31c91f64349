"""`dairllm-shard`: loads the layers that it is assigned, and computes them."""

import dairllm.mesh  # noqa: F401  before gRPC

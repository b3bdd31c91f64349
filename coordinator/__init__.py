"""`dairllm-coordinator`: who is a member, who computes what, and the API."""

import dairllm.mesh  # noqa: F401  before gRPC

"""What both services share on the wire."""

import os

# gRPC reads it when it is first imported: so this package comes before it. Without it lines of its own go to stderr for much that happens
# to a connection, past the log, and wait for whoever reads them; what matters of that reaches us as an error.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

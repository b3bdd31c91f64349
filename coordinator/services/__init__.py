"""The coordinator's gRPC services: each says in the words of the protocol what another part does."""

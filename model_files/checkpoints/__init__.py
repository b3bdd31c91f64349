"""From what a container says of a model to its description, and from roles to stored tensors: what architectures share."""

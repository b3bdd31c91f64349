"""`dairllm doctor`: why two machines do not find each other, and what to do."""

"""`dairllm bench`: what one machine that holds the whole model reaches, without network."""

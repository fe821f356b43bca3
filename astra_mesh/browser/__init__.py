"""What a browser tab needs to run a model's blocks: graphs, tensors and what they mean."""

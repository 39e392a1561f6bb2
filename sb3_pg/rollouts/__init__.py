"""Playing the environments: the loop, which episodes count, and the buffers they go into."""

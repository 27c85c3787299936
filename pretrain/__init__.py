"""Training: configuration, data, optimizers, the DeepSpeed engine, the loop and the command line."""

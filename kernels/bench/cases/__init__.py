"""What is compared, one file per operation, whose `cases(device, dtype)` yields it."""

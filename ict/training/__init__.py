"""Training of both stages: batches, the loop, exact resume, the log."""

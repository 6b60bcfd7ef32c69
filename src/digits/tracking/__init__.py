"""MLflow is told after the disk is: stages write into the outbox, the sender delivers it."""

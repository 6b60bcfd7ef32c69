"""A tracked MNIST pipeline: DVC decides what runs, MLflow remembers what it gave."""

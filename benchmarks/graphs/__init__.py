"""Graph networks: their accuracies."""

"""What runs and why, what is installed, and first use ahead of time."""

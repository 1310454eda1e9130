"""What depth buys: exact constructions, bounds that are proved, and experiments that say what they do not show."""

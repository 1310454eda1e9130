"""The depth laboratory: networks that are trained as one computation."""

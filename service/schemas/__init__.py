"""Public types that belong to no single task."""

"""One file per method; the folder listing is the registry (planner.method.methods)."""

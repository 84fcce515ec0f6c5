"""One file per verb of `planner`; each holds a click command named `command`."""

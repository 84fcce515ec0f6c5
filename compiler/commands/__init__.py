"""One file per verb of the command `compiler`; its first line is the verb's summary."""

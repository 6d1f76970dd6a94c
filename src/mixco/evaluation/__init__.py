"""The evaluations by name. Nothing heavy is imported here: the command line reads this table."""

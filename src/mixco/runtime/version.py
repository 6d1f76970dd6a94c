"""The version of mixco, also where it is not installed but only on the path of Python."""

VERSION = "0.2.0"

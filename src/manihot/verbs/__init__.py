"""The Python API: one function per verb, which the command line shows with the same names, options and defaults."""

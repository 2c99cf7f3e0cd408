"""
The subcommands of ``dicomtwist`` as the command line shows them, one module each: arguments, options and help.

Shell completion imports these modules on every press of the Tab key, so they import nothing but click and the options.
The work of a subcommand is in :mod:`dicomtwist.tools.runners`, which is imported when the subcommand runs.
"""

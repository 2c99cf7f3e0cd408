"""
The subcommands of ``dicomtwist`` at work, one module each: a class holds the options, and its ``main`` runs the subcommand.
"""

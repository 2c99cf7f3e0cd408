"""The subcommands of ``dicomtwist``, one module each."""

"""What the subcommands of ``dicomtwist`` do once their options are read, one module each."""

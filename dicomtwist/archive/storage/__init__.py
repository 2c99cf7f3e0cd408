"""Where the bytes of instances lie: files, written whole or not at all."""

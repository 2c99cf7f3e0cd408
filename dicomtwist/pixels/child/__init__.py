"""The child process: images opened, decoded, rendered and encoded. Only it imports NumPy and the codecs."""

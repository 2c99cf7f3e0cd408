"""What every folder may use: threads and memory."""

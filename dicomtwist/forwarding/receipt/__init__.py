"""The tasks that follow from the receipt of an instance, and the end of what is forwarded and not kept."""

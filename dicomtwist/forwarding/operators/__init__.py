"""The queue of forwarding and its rules, as operators see them."""

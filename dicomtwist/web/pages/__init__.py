"""Pages for people: the studies and their images, and what the server does."""

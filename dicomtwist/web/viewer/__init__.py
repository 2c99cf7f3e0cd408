"""A web viewer of images, such as OHIF: its files, and the configuration that leads it to this server."""

"""The removal of what an archive holds: studies, series and instances."""

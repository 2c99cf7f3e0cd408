"""The index: a database with the attributes of each patient, study, series and instance."""

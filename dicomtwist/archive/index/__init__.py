"""The index: what is known of each patient, study, series and instance, in a database."""

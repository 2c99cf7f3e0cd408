"""Store and forward in ``twist dicom``: its options, rules, files and services."""

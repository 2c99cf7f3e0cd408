"""The client of DICOMweb."""

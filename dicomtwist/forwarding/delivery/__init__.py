"""Delivery: instances on their way to destinations, by DIMSE and by DICOMweb."""

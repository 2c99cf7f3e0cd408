"""Stored instances as DICOMweb gives them: files, frames, bulk data, metadata."""

"""DICOMweb (PS3.18) over twisted.web: what DIMSE can do with an archive, for HTTP."""

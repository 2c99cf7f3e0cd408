"""DICOMweb (PS3.18), sans-I/O: media types, multipart bodies, DICOM JSON, query parameters."""

"""What is behind ``twist dicom``: received instances on disk."""

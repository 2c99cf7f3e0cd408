"""The ``twist dicom`` command: options, configuration, worker processes, reload."""

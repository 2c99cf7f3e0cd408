"""HTTP below DICOMweb: the site, its connections and their limits, bodies that are streamed, who sent a request."""

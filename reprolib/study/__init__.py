"""Studies: run a notebook with checked parameters, record its provenance, report its results."""

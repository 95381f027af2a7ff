"""Studies: run a notebook with checked parameters, record its provenance, report its results."""

import sys

# jsonschema's check of web addresses, which no notebook needs, compiles a grammar for three seconds.
sys.modules.setdefault("rfc3987_syntax", None)

"""From files to batches: tables, manifests, the pixel store, drawn hands."""

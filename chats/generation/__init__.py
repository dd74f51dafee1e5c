"""One reply, from request to settlement."""

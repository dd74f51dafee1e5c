"""REST: a module a resource."""

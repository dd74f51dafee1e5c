"""REST: quotas and usage."""

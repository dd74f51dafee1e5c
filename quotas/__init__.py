"""Plans, holds, settlement, usage."""

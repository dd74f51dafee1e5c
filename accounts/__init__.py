"""Users, sessions, tokens."""

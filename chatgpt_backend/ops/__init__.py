"""What operators use: health, checks, commands, the server."""

#!/usr/bin/env python
"""The command line of the project."""

import os
import sys


def main() -> None:
    """Run a management command."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chatgpt_backend.settings")
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    if command == "init":
        # Before the settings are read, since they need what this writes.
        from chatgpt_backend.env import write_missing_secrets

        write_missing_secrets()
    if command == "serve":
        # Before anything imports Twisted's reactor.
        from chatgpt_backend.ops.reactor import install_uvloop

        install_uvloop()
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()

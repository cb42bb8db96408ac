"""The only code that talks to Docker, Postgres, Redis and the file system: each takes a deadline and returns
plain dataclasses."""

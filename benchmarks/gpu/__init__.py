"""The GPU report. Each part runs in a separate process and saves results at once."""

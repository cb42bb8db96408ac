"""What a scrape costs, beside the exporters it replaces: `python -m bench`."""

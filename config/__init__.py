"""Configuration: schema, loader, documented defaults, examples."""

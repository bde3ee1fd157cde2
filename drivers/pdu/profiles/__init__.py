"""Vendor profiles: OIDs, units, limit kind, as data."""

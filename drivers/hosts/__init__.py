"""What hosts say of themselves: a scraper of Prometheus' node_exporter, and a feed of JSON lines."""

"""What it bought, or would have: a span of the history as figures, and as a page for whoever decides."""

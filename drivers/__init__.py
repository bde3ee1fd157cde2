"""Everything that touches a wire, and its simulator."""

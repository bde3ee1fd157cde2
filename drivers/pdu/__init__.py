"""PDU drivers, their vendor profiles as data, and the simulated PDU."""

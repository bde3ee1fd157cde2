"""Notifications to facilities: our MIB on the wire, and the SNMP engine that sends it."""

"""Register maps of Modbus devices, as data: see `drivers/pdu/register_map.py`."""

"""The model that ships with the program."""

"""This machine and what runs on it: child processes, devices, scratch folders, patience."""

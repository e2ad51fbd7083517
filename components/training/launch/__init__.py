"""Launchers: one interface, three back ends (`process`, `pytorchjob`, `trainjob`)."""

"""The KFP back end and its cluster: connection, checks, jobs."""

"""What is kept, computed again or held on the host, and the plan of it."""

"""What a user sets: the config groups, recipes, dotted overrides, the automatic layout."""

"""Stage `training`: post-train a Cosmos model on many processes."""

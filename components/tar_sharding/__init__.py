"""Stage: pack videos into tar shards that megatron-energon and webdataset read."""

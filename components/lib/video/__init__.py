"""Video: probing, streaming decoding, encoding, and the records that describe a video set."""

"""What stages share. Nothing here imports kfp or kubernetes."""
